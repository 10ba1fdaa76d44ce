#pragma once

// The arguments that attention and the layers that attend have in common.

#include <cstdint>
#include <optional>
#include <vector>

#include "bindings/arrays.h"
#include "layers/attention.h"

namespace blasformer::bindings {

double number(const py::object& argument, const char* name);

// The arguments of one call and the arrays they look into.
struct AttentionCall {
  AttentionArguments arguments;
  std::vector<py::object> arrays;

  ArrayView keep(py::object array, ArrayView (*view)(py::object&, const char*), const char* name);
  void keep(std::optional<ArrayView>& target, const py::object& array,
            ArrayView (*view)(py::object&, const char*), const char* name);
};

// What every attention function takes after its operands, in the order of the public signature.
struct MaskArguments {
  py::object mask, causal, query_offset, window, query_lengths, key_lengths, query_segments, key_segments;
};

void parse_masks(const MaskArguments& masks, AttentionCall& call);

// What every layer that attends takes: (mask, bias, causal, query_offset, window, query_lengths, key_lengths,
// query_segments, key_segments, alibi_slopes).
AttentionCall layer_call(const py::tuple& arguments, std::optional<std::uint64_t> seed);

// The weights to return: None, or (heads, rows, mean) with lists of indices.
std::optional<WeightSelection> selection_of(const py::object& argument);

}  // namespace blasformer::bindings
