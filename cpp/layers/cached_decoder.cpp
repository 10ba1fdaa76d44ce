#include "layers/cached_decoder.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <span>

#include "layers/decoder_layer.h"
#include "layers/gated_feed_forward.h"
#include "layers/residual.h"
#include "layers/rms_norm.h"

namespace blasformer {

namespace {

// A decoder layer's part of adding positions to targets.
template <class T>
struct CachedDecoding {
  const Tensor<std::int64_t>&added, &seen, &memory_lengths;

  template <class Layer>
  Tensor<T> attend(const Layer& layer, const Tensor<T>& x, KeysAndValues<T>& cache) const {
    return attend_causally(layer.self_attn, x, added, seen, cache);
  }
  // The positions of all targets of a memory are its queries, side by side.
  template <class Layer>
  Tensor<T> look_up(const Layer& layer, const Tensor<T>& x, const KeysAndValues<T>& memory) const {
    const Index memories = memory.key.extent(0), positions = x.extent(0) * x.extent(1);
    const Tensor<T> queries(x.memory(), {memories, memories == 0 ? 0 : positions / memories, x.extent(2)});
    return Tensor<T>(attend_to(layer.multihead_attn, queries, memory, memory_lengths).memory(), x.shape());
  }

  template <class Norm, class Feed>
  Tensor<T> forward(const PostNormDecoderLayer<T, Norm, Feed>& layer, const Tensor<T>& x,
                    KeysAndValues<T>& self_attn, const KeysAndValues<T>& memory) const {
    const Tensor<T> y = layer.norm1.forward(sum(x, attend(layer, x, self_attn)));
    const Tensor<T> z = layer.norm2.forward(sum(y, look_up(layer, y, memory)));
    return layer.norm3.forward(sum(z, layer.feed_forward.forward(z)));
  }
  template <class Norm, class Feed>
  Tensor<T> forward(const PreNormDecoderLayer<T, Norm, Feed>& layer, const Tensor<T>& x,
                    KeysAndValues<T>& self_attn, const KeysAndValues<T>& memory) const {
    const Tensor<T> y = sum(x, attend(layer, layer.norm1.forward(x), self_attn));
    const Tensor<T> z = sum(y, look_up(layer, layer.norm2.forward(y), memory));
    return sum(z, layer.feed_forward.forward(layer.norm3.forward(z)));
  }

 private:
  static Tensor<T> sum(const Tensor<T>& x, Tensor<T> branch) {
    add_residual(x, 0, std::nullopt, branch);
    return branch;
  }
};

Tensor<std::int64_t> of_rows(const Tensor<std::int64_t>& values, const std::vector<Index>& rows) {
  Tensor<std::int64_t> result({static_cast<Index>(rows.size())});
  std::transform(rows.begin(), rows.end(), result.data(), [&](Index row) { return values.data()[row]; });
  return result;
}

}  // namespace

template <class T>
DecoderCache<T> DecoderCache<T>::of_rows(const std::vector<Index>& memories,
                                         const std::vector<Index>& targets) const {
  DecoderCache result{{}, multihead_attn, memory_lengths, blasformer::of_rows(seen, targets), capacity};
  for (const KeysAndValues<T>& of_layer : self_attn) result.self_attn.push_back(of_layer.of_rows(targets));
  const Index count = this->memories();
  bool same = static_cast<Index>(memories.size()) == count;
  for (Index i = 0; same && i < count; ++i) same = memories[static_cast<std::size_t>(i)] == i;
  if (same) return result;
  for (KeysAndValues<T>& of_layer : result.multihead_attn) of_layer = of_layer.of_rows(memories);
  if (!memory_lengths.empty()) result.memory_lengths = blasformer::of_rows(memory_lengths, memories);
  return result;
}

template <class T>
DecoderCache<T> DecoderCache<T>::of_targets(const std::vector<Index>& targets) const {
  const Index each = memories() == 0 ? 1 : std::max<Index>(1, seen.size() / memories());
  std::vector<Index> of_each;  // the memory of each target
  for (const Index target : targets) of_each.push_back(target / each);
  // Runs of one memory share it, if they are equally long.
  const auto change = std::adjacent_find(of_each.begin(), of_each.end(), std::not_equal_to<>());
  const std::size_t run = change == of_each.end() ? std::max<std::size_t>(1, of_each.size())
                                                  : static_cast<std::size_t>(change - of_each.begin()) + 1;
  bool regular = of_each.size() % run == 0;
  std::vector<Index> of_runs;
  for (std::size_t i = 0; i < of_each.size(); ++i) {
    if (i % run == 0) of_runs.push_back(of_each[i]);
    regular = regular && of_each[i] == of_runs.back();
  }
  return of_rows(regular ? of_runs : of_each, targets);
}

template <class Layer, class T>
DecoderCache<T> decoder_cache(std::span<const Layer> layers, const Tensor<T>& memory,
                              const Tensor<std::int64_t>& lengths, Index capacity) {
  const Index batch = memory.extent(0);
  DecoderCache<T> cache{{}, {}, lengths, Tensor<std::int64_t>::full({batch}, 0), capacity};
  for (const Layer& layer : layers) {
    cache.self_attn.emplace_back(layer.self_attn, batch, capacity);
    cache.multihead_attn.push_back(keys_and_values(layer.multihead_attn, memory));
  }
  return cache;
}

template <class Layer, class T>
Tensor<T> decode_causally(std::span<const Layer> layers, Tensor<T> x, const Tensor<std::int64_t>& added,
                          DecoderCache<T>& cache) {
  const CachedDecoding<T> decoding{added, cache.seen, cache.memory_lengths};
  for (std::size_t i = 0; i < layers.size(); ++i)
    x = decoding.forward(layers[i], x, cache.self_attn[i], cache.multihead_attn[i]);
  std::transform(cache.seen.data(), cache.seen.data() + cache.seen.size(), added.data(), cache.seen.data(),
                 std::plus<>());
  return x;
}

#define BLASFORMER_CACHED_LAYER(T, ...)                                                                    \
  template DecoderCache<T> decoder_cache(std::span<const __VA_ARGS__>, const Tensor<T>&,                   \
                                         const Tensor<std::int64_t>&, Index);                              \
  template Tensor<T> decode_causally(std::span<const __VA_ARGS__>, Tensor<T>, const Tensor<std::int64_t>&, \
                                     DecoderCache<T>&);
#define BLASFORMER_CACHED_DECODERS(T, Norm, Feed)                       \
  BLASFORMER_CACHED_LAYER(T, PostNormDecoderLayer<T, Norm<T>, Feed<T>>) \
  BLASFORMER_CACHED_LAYER(T, PreNormDecoderLayer<T, Norm<T>, Feed<T>>)
BLASFORMER_EACH_BLOCK(BLASFORMER_CACHED_DECODERS)
template struct DecoderCache<float>;
template struct DecoderCache<double>;

}  // namespace blasformer
