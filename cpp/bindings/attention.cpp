#include "layers/attention.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/attention_call.h"
#include "bindings/gil.h"
#include "bindings/output.h"
#include "core/describe.h"
#include "core/tensor_view.h"
#include "layers/row_blocks.h"

namespace blasformer::bindings {

namespace {

AttentionCall parse(const py::object& query, const py::object& key, const py::object& value,
                    const MaskArguments& masks, const py::object& bias, const py::object& alibi_slopes,
                    const py::object& sinks, const py::object& softcap, const py::object& scale,
                    const py::object& dropout_p, const py::object& seed) {
  AttentionCall call;
  call.arrays.reserve(8);
  AttentionArguments& arguments = call.arguments;
  arguments.query = call.keep(query, float_view, "query");
  arguments.key = call.keep(key, float_view, "key");
  arguments.value = call.keep(value, float_view, "value");
  parse_masks(masks, call);
  call.keep(arguments.bias, bias, float_view, "bias");
  call.keep(arguments.alibi_slopes, alibi_slopes, float_view, "alibi_slopes");
  call.keep(arguments.sinks, sinks, float_view, "sinks");
  if (!softcap.is_none()) arguments.softcap = number(softcap, "softcap");
  if (!scale.is_none()) arguments.scale = number(scale, "scale");
  arguments.dropout_p = number(dropout_p, "dropout_p");
  if (!seed.is_none()) arguments.seed = seed.cast<std::uint64_t>();
  return call;
}

// Work so small that handing the interpreter lock over and back would be noticed keeps it.
bool worth_releasing(const AttentionArguments& arguments) {
  const auto elements = [](const ArrayView& view) {
    double count = 1;
    for (int axis = 0; axis < view.rank; ++axis) count *= static_cast<double>(view.shape[axis]);
    return count;
  };
  const ArrayView& key = arguments.key;
  return elements(arguments.query) * static_cast<double>(key.rank >= 2 ? key.shape[key.rank - 2] : 1) > 2e5;
}

template <class Function>
void run(const AttentionArguments& arguments, const Function& function) {
  if (worth_releasing(arguments)) {
    const ReleaseGil released;
    function();
  } else {
    const ContextModes modes;
    function();
  }
}

DType statistics_dtype(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

bool overlaps_inputs(const ArrayView& output, const AttentionArguments& arguments) {
  const auto overlaps = [&](const std::optional<ArrayView>& view) {
    return view && may_overlap(output, *view);
  };
  return may_overlap(output, arguments.query) || may_overlap(output, arguments.key) ||
         may_overlap(output, arguments.value) || overlaps(arguments.mask) || overlaps(arguments.bias);
}

py::array weights_array(const AttentionArguments& arguments, const WeightSelection& selection) {
  Shape shape(arguments.query.shape, arguments.query.shape + std::max(arguments.query.rank - 3, 0));
  if (arguments.query.rank > 2 && !selection.mean)
    shape.push_back(static_cast<Index>(selection.heads.size()));
  shape.push_back(static_cast<Index>(selection.rows.size()));
  shape.push_back(arguments.key.shape[arguments.key.rank - 2]);
  return new_array(arguments.query.dtype, shape.data(), static_cast<int>(shape.size()));
}

// What attention_forward hands to attention_backward: it keeps the operands alive, which must not change in
// between, and a copy of the output that the caller cannot change.
struct SavedAttention {
  AttentionCall call;
  AttentionStatistics<float> single;
  AttentionStatistics<double> doubled;
  Tensor<float> single_output;
  Tensor<double> doubled_output;

  template <class T>
  AttentionStatistics<T>& statistics() {
    if constexpr (std::is_same_v<T, double>) {
      return doubled;
    } else {
      return single;
    }
  }
  template <class T>
  Tensor<T>& output() {
    if constexpr (std::is_same_v<T, double>) {
      return doubled_output;
    } else {
      return single_output;
    }
  }
  bool is_double() const { return call.arguments.query.dtype == DType::float64; }
  Index nbytes() const {
    const auto bytes = [](const auto& statistics, const auto& output, Index size) {
      return (output.size() + statistics.maximum.size() + statistics.reciprocal_sum.size()) * size;
    };
    return bytes(single, single_output, 4) + bytes(doubled, doubled_output, 8);
  }
  std::string text() const {
    std::ostringstream text;
    text << "AttentionSaved(query=" << describe(call.arguments.query)
         << ", key=" << describe(call.arguments.key) << ", value=" << describe(call.arguments.value)
         << ", nbytes=" << nbytes() << ')';
    return text.str();
  }
};

// Where a call leaves its results; what was not asked for is None.
struct Results {
  py::array output;
  std::optional<WeightSelection> selection;
  py::object weights = py::none(), logsumexp = py::none();

  template <class T>
  void compute(const AttentionArguments& arguments, SavedAttention* saved) {
    const MutableArrayView view = mutable_view(output);
    AttentionStatistics<T> statistics;
    const bool more = selection || !logsumexp.is_none();
    run(arguments, [&] {
      if (saved != nullptr) {
        Tensor<T>& kept = saved->output<T>();
        kept = Tensor<T>(attention_output_shape(arguments));
        attention_forward<T>(arguments, view_of(kept), &statistics);
        for_each_row_block(Elements<T>(kept.data()), kept.size(), 1, MutableElements<T>(view), 0.3,
                           [](const T* x, Index, Index count, T* y) { std::copy_n(x, count, y); });
        saved->statistics<T>() = statistics;
      } else {
        attention_forward<T>(arguments, view, more ? &statistics : nullptr);
      }
    });
    if (selection) {
      auto array = py::reinterpret_borrow<py::array>(weights);
      const MutableArrayView weights_view = mutable_view(array);
      run(arguments, [&] { attention_weights(arguments, statistics, *selection, weights_view); });
    }
    if (!logsumexp.is_none()) {
      auto array = py::reinterpret_borrow<py::array>(logsumexp);
      attention_logsumexp(statistics, static_cast<T*>(array.mutable_data()));
    }
  }
};

// The output alone, or (output, weights, logsumexp, saved) when more than it was asked for.
py::object attention(const py::object& query, const py::object& key, const py::object& value,
                     const py::object& mask, const py::object& bias, const py::object& causal,
                     const py::object& query_offset, const py::object& window,
                     const py::object& query_lengths, const py::object& key_lengths,
                     const py::object& query_segments, const py::object& key_segments,
                     const py::object& alibi_slopes, const py::object& sinks, const py::object& softcap,
                     const py::object& scale, const py::object& dropout_p, const py::object& seed,
                     const py::object& weights, bool return_logsumexp, std::optional<bool> batch_invariant,
                     const py::object& out, bool save) {
  AttentionCall call =
      parse(query, key, value,
            {mask, causal, query_offset, window, query_lengths, key_lengths, query_segments, key_segments},
            bias, alibi_slopes, sinks, softcap, scale, dropout_p, seed);
  call.arguments.batch_invariant = batch_invariant;
  const Shape shape = attention_output_shape(call.arguments);
  std::unique_ptr<SavedAttention> saved;
  if (save) {
    saved = std::make_unique<SavedAttention>();
    saved->call = std::move(call);
  }
  const AttentionArguments& arguments = save ? saved->call.arguments : call.arguments;

  // Everything is allocated before anything is computed.
  Results results;
  py::array output = output_array(out, shape, arguments.query.dtype, "query");
  const bool aliased = !out.is_none() && overlaps_inputs(readable(mutable_view(output)), arguments);
  require(!save || !aliased,
          "out must not share memory with the other arguments, which attention_backward reads again");
  // Inputs are read until the end: an output that shares their memory is written last.
  const bool apart = aliased || (save && !out.is_none());
  results.output =
      apart ? new_array(arguments.query.dtype, shape.data(), static_cast<int>(shape.size())) : output;
  results.selection = selection_of(weights);
  if (results.selection) results.weights = weights_array(arguments, *results.selection);
  if (return_logsumexp) {
    results.logsumexp =
        new_array(statistics_dtype(arguments.query.dtype), shape.data(), static_cast<int>(shape.size()) - 1);
  }
  if (arguments.query.dtype == DType::float64) {
    results.compute<double>(arguments, saved.get());
  } else {
    results.compute<float>(arguments, saved.get());
  }
  if (apart) output.attr("__setitem__")(py::ellipsis(), results.output);
  if (!results.selection && !return_logsumexp && !save) return py::object(output);
  return py::make_tuple(output, results.weights, results.logsumexp,
                        save ? py::cast(std::move(saved)) : py::none());
}

py::tuple backward(SavedAttention& saved, const py::object& d_output) {
  const AttentionArguments& arguments = saved.call.arguments;
  py::object gradient = d_output;
  const ArrayView d_output_view = float_view(gradient, "d_output");
  AttentionGradientViews views;
  const auto like = [](const ArrayView& view) { return new_array(view.dtype, view.shape, view.rank); };
  py::array query = like(arguments.query), key = like(arguments.key), value = like(arguments.value);
  views.query = mutable_view(query);
  views.key = mutable_view(key);
  views.value = mutable_view(value);
  py::object bias = py::none(), sinks = py::none();
  const auto add = [&](const std::optional<ArrayView>& argument, std::optional<MutableArrayView>& view,
                       py::object& result) {
    if (!argument) return;
    py::array array = like(*argument);
    view = mutable_view(array);
    result = array;
  };
  add(arguments.bias, views.bias, bias);
  add(arguments.sinks, views.sinks, sinks);
  run(arguments, [&] {
    if (saved.is_double()) {
      attention_backward(arguments, saved.doubled, readable(view_of(saved.doubled_output)), d_output_view,
                         views);
    } else {
      attention_backward(arguments, saved.single, readable(view_of(saved.single_output)), d_output_view,
                         views);
    }
  });
  return py::make_tuple(query, key, value, bias, sinks);
}

// A call on shapes alone, for the functions that explain instead of compute.
// Without memory; rows are dense.
AttentionArguments shapes_only(const std::vector<Index>& query_shape, const std::vector<Index>& key_shape,
                               const std::vector<Index>& value_shape, DType dtype) {
  const auto view = [dtype](const std::vector<Index>& shape, const char* name) {
    require(shape.size() <= static_cast<std::size_t>(kMaxRank), name, " must have at most ", kMaxRank,
            " dimensions, got ", shape.size());
    ArrayView result;
    result.dtype = dtype;
    result.rank = static_cast<int>(shape.size());
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      require(shape[axis] >= 0, name, " must have dimensions >= 0, got ",
              shape_text(shape.data(), result.rank));
      result.shape[axis] = shape[axis];
    }
    if (result.rank > 0) result.stride[result.rank - 1] = 1;
    if (result.rank > 1) result.stride[result.rank - 2] = result.shape[result.rank - 1];
    return result;
  };
  AttentionArguments arguments;
  arguments.query = view(query_shape, "query_shape");
  arguments.key = view(key_shape, "key_shape");
  arguments.value = view(value_shape, "value_shape");
  return arguments;
}

py::array explain(const std::vector<Index>& query_shape, const std::vector<Index>& key_shape,
                  const py::object& mask, const py::object& causal, const py::object& query_offset,
                  const py::object& window, const py::object& query_lengths, const py::object& key_lengths,
                  const py::object& query_segments, const py::object& key_segments) {
  AttentionCall call;
  call.arguments = shapes_only(query_shape, key_shape, key_shape, DType::float32);
  parse_masks({mask, causal, query_offset, window, query_lengths, key_lengths, query_segments, key_segments},
              call);
  Shape shape = attention_output_shape(call.arguments);
  shape.back() = key_shape[key_shape.size() - 2];
  py::array allowed = new_array(DType::boolean, shape.data(), static_cast<int>(shape.size()));
  auto* data = static_cast<bool*>(allowed.mutable_data());
  run(call.arguments, [&] { explain_mask(call.arguments, data); });
  return allowed;
}

py::dict plan(const std::vector<Index>& query_shape, const std::vector<Index>& key_shape,
              const std::vector<Index>& value_shape, const py::dtype& dtype, const py::object& bias) {
  const std::optional<DType> type = dtype_of_array(py::array(dtype, std::vector<py::ssize_t>{0}));
  if (!type || *type == DType::boolean) {
    fail<TypeMismatch>("dtype must be float32, float64, float16 or bfloat16, got ",
                       std::string(py::str(dtype)));
  }
  AttentionCall call;
  call.arguments = shapes_only(query_shape, key_shape, value_shape, *type);
  call.keep(call.arguments.bias, bias, float_view, "bias");
  const ContextModes modes;
  const AttentionPlan plan = attention_plan(call.arguments);
  py::dict result;
  result["kernel"] = plan.kernel;
  result["query_tile"] = plan.query_tile;
  result["key_block"] = plan.key_block;
  result["queries_per_task"] = plan.queries_per_task;
  result["keys_per_task"] = plan.keys_per_task;
  result["tasks"] = plan.tasks;
  result["threads"] = plan.threads;
  result["workspace_bytes"] = plan.workspace_bytes;
  result["shared_bytes"] = plan.shared_bytes;
  return result;
}

}  // namespace

void bind_attention(py::module_& module) {
  module.def("attention", attention, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("mask"),
             py::arg("bias"), py::arg("causal"), py::arg("query_offset"), py::arg("window"),
             py::arg("query_lengths"), py::arg("key_lengths"), py::arg("query_segments"),
             py::arg("key_segments"), py::arg("alibi_slopes"), py::arg("sinks"), py::arg("softcap"),
             py::arg("scale"), py::arg("dropout_p"), py::arg("seed"), py::arg("weights"),
             py::arg("return_logsumexp"), py::arg("batch_invariant"), py::arg("out"), py::arg("save"));
  py::class_<SavedAttention>(module, "AttentionSaved", "What attention_forward keeps for attention_backward.")
      .def_property_readonly("nbytes", &SavedAttention::nbytes,
                             "Bytes held besides the arguments, which are referred to.")
      .def("__repr__", &SavedAttention::text);
  module.def("attention_backward", backward, py::arg("saved"), py::arg("d_output"));
  module.def("explain_mask", explain, py::arg("query_shape"), py::arg("key_shape"), py::arg("mask"),
             py::arg("causal"), py::arg("query_offset"), py::arg("window"), py::arg("query_lengths"),
             py::arg("key_lengths"), py::arg("query_segments"), py::arg("key_segments"));
  module.def("attention_plan", plan, py::arg("query_shape"), py::arg("key_shape"), py::arg("value_shape"),
             py::arg("dtype"), py::arg("bias"));
}

}  // namespace blasformer::bindings
