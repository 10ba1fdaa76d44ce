#pragma once

// Decoding step by step, for decoders and for what has one.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/layer.h"
#include "core/require.h"
#include "core/tensor.h"
#include "layers/cached_decoder.h"

namespace blasformer::bindings {

// Targets that positions are added to. See DecoderCache.
class GrowingTargets {
 public:
  virtual ~GrowingTargets() = default;
  // What the decoder makes of new positions, (targets, length, d_model), of which each target has as many as
  // `added` says; None: all.
  virtual py::object add(const py::object& target, py::object added) = 0;
  virtual void choose(const std::vector<Index>& rows) = 0;
  virtual py::array lengths() const = 0;
  virtual Index nbytes() const = 0;
};

// (batch,) lengths in [0, longest]; None: empty.
inline Tensor<std::int64_t> lengths_of(py::object& argument, const char* name, Index batch, Index longest) {
  if (argument.is_none()) return {};
  Tensor<std::int64_t> lengths = integer_input(argument, name);
  require(lengths.shape() == Shape{batch}, name, " must have the shape (", batch, ",), got ",
          shape_text(lengths.shape()));
  for (Index b = 0; b < batch; ++b) {
    const std::int64_t length = lengths.data()[b];
    require(length >= 0 && length <= longest, name, " must lie between 0 and ", longest, ", got ", length);
  }
  return lengths;
}

// The decoder in a Transformer, or what is one itself.
template <class L>
const auto& decoder_of(const L& layer) {
  if constexpr (requires { layer.decoder; }) {
    return layer.decoder;
  } else {
    return layer;
  }
}

// The layers of a decoder, or the one that it is.
template <class Decoder>
auto blocks_of(const Decoder& decoder) {
  if constexpr (requires { decoder.layers; }) {
    return std::span(decoder.layers);
  } else {
    return std::span(&decoder, 1);
  }
}

// A step of a cache, which takes one at a time. It begins and ends with the interpreter lock.
class CacheStep {
 public:
  explicit CacheStep(bool& running) : running_(running) {
    if (running) throw std::runtime_error("the cache must be used by one thread at a time, got another step");
    running_ = true;
  }
  ~CacheStep() { running_ = false; }
  CacheStep(const CacheStep&) = delete;
  CacheStep& operator=(const CacheStep&) = delete;

 private:
  bool& running_;
};

template <class L>
class GrowingTargetsOf : public GrowingTargets {
 public:
  using T = typename L::Scalar;

  // computing: while it lives the weights stay as they are.
  GrowingTargetsOf(std::shared_ptr<const L> layer, std::shared_ptr<void> computing, const Tensor<T>& memory,
                   const Tensor<std::int64_t>& memory_lengths, Index capacity)
      : computing_(std::move(computing)),
        layer_(std::move(layer)),
        blocks_(blocks_of(decoder_of(*layer_))),
        cache_(begin(blocks_, memory, memory_lengths, capacity)),
        lengths_(cache_.seen.copy()) {}

  py::object add(const py::object& target, py::object added) override {
    const Tensor<T> x = input<T>(target, "target", false);
    const CacheStep step(running_);
    const Index targets = cache_.seen.size(), features = blocks_.front().d_model();
    require(x.rank() == 3 && x.extent(0) == targets && x.extent(2) == features,
            "target must have the shape (", targets, ", length, ", features, "), got ",
            shape_text(x.shape()));
    Tensor<std::int64_t> counts = lengths_of(added, "lengths", targets, x.extent(1));
    if (counts.empty()) counts = Tensor<std::int64_t>::full({targets}, x.extent(1));
    for (Index b = 0; b < targets; ++b) {
      const Index room = cache_.capacity - cache_.seen.data()[b];
      require(counts.data()[b] <= room, "target must have at most the ", room,
              " positions that capacity has room for, got ", counts.data()[b]);
    }
    Tensor<T> y;
    {
      const ReleaseGil released;
      y = decode_causally(blocks_, x, counts, cache_);
      if constexpr (requires { decoder_of(*layer_).norm; }) {
        if (const auto& norm = decoder_of(*layer_).norm) y = norm->forward(y);
      }
    }
    lengths_ = cache_.seen.copy();
    return numpy_view(y, true);
  }

  void choose(const std::vector<Index>& rows) override {
    const CacheStep step(running_);
    const Index count = cache_.seen.size();
    for (const Index row : rows) {
      if (row < 0 || row >= count) fail<std::out_of_range>("rows must lie in [0, ", count, "), got ", row);
    }
    cache_ = chosen(rows);
    lengths_ = cache_.seen.copy();
  }

  py::array lengths() const override { return py::array_t<std::int64_t>(lengths_.size(), lengths_.data()); }

  Index nbytes() const override {
    Index bytes = 0;
    for (const auto* kept : {&cache_.self_attn, &cache_.multihead_attn}) {
      for (const KeysAndValues<T>& of_layer : *kept)
        bytes += (of_layer.key.size() + of_layer.value.size()) * static_cast<Index>(sizeof(T));
    }
    return bytes;
  }

 private:
  static DecoderCache<T> begin(const auto& blocks, const Tensor<T>& memory,
                               const Tensor<std::int64_t>& memory_lengths, Index capacity) {
    const ReleaseGil released;
    return decoder_cache(blocks, memory, memory_lengths, capacity);
  }
  DecoderCache<T> chosen(const std::vector<Index>& rows) const {
    const ReleaseGil released;
    return cache_.of_targets(rows);
  }

  std::shared_ptr<void> computing_;
  std::shared_ptr<const L> layer_;
  decltype(blocks_of(decoder_of(std::declval<const L&>()))) blocks_;  // of layer_
  DecoderCache<T> cache_;
  Tensor<std::int64_t> lengths_;  // before a step that is running
  bool running_ = false;
};

// An argument and its name.
struct NamedArgument {
  py::object value;
  const char* name;
};

template <class L>
std::unique_ptr<GrowingTargets> growing_targets(std::shared_ptr<const L> layer,
                                                std::shared_ptr<void> computing, const py::object& memory,
                                                NamedArgument memory_lengths, Index capacity) {
  const auto from = input<typename L::Scalar>(memory, "memory", false);
  const Index features = blocks_of(decoder_of(*layer)).front().d_model();
  require(from.rank() == 3 && from.extent(2) == features,
          "memory must have the shape (batch, memory_length, ", features, "), got ",
          shape_text(from.shape()));
  require(capacity >= 0, "capacity must be at least 0, got ", capacity);
  const Tensor<std::int64_t> lengths =
      lengths_of(memory_lengths.value, memory_lengths.name, from.extent(0), from.extent(1));
  return std::make_unique<GrowingTargetsOf<L>>(std::move(layer), std::move(computing), from, lengths,
                                               capacity);
}

}  // namespace blasformer::bindings
