#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "core/thread_pool.h"
#include "layers/encoder_layer.h"

namespace blasformer {

using tests::message_of;

namespace {

constexpr Index kWidth = 24;
const TransformerLayerSizes kSizes{kWidth, 4, 2, 40, Activation::gelu, 0.0, 1e-12, true};
const TransformerLayerSizes kRotarySizes{
    kWidth, 4,     2,    40,    Activation::gelu,
    0.0,    1e-12, true, false, RotaryPositions{RotaryPairs::halves, 100, 4}};

template <class Layer>
Layer initialised(const TransformerLayerSizes& sizes) {
  Layer layer(sizes);
  Initialiser random(7);
  layer.initialise(random);
  return layer;
}

template <class T>
Tensor<T> rows_of(const Tensor<T>& x, Index first, Index count) {
  Tensor<T> rows({count, kWidth});
  std::copy_n(x.data() + first * kWidth, count * kWidth, rows.data());
  return rows;
}

// Each sequence of the packed batch has the output that it has by itself.
template <class Layer>
void check_packed(const std::vector<Index>& starts, AttentionArguments arguments = {},
                  const TransformerLayerSizes& sizes = kSizes) {
  using T = typename Layer::Scalar;
  const auto layer = initialised<Layer>(sizes);
  Tensor<T> x({starts.back(), kWidth});
  Initialiser random(11);
  random.normal(x);
  const Tensor<T> packed = layer.forward_packed(x, starts, arguments);
  CHECK(packed.shape() == x.shape());
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const Index first = starts[i], count = starts[i + 1] - first;
    const Tensor<T> alone = layer.forward(rows_of(x, first, count), arguments);
    for (Index j = 0; j < count * kWidth; ++j) {
      const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-13;
      CHECK(std::abs(static_cast<double>(packed.data()[first * kWidth + j] - alone.data()[j])) < tolerance);
    }
  }
}

}  // namespace

TEST(a_packed_sequence_has_the_output_it_has_alone) {
  const std::vector<Index> few{0, 5, 6, 6, 43},
      many{0, 1, 4, 9, 16, 16, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225};
  AttentionArguments causal;
  causal.causal = Causal::yes;
  for (const auto& starts : {few, many}) {
    check_packed<PostNormEncoderLayer<float>>(starts);
    check_packed<PreNormEncoderLayer<float>>(starts, causal);
    check_packed<PostNormEncoderLayer<double>>(starts, causal);
    check_packed<PreNormEncoderLayer<double>>(starts);
    check_packed<PreNormEncoderLayer<double>>(starts, causal, kRotarySizes);
  }
}

TEST(a_packed_batch_without_sequences_or_rows_is_empty) {
  check_packed<PostNormEncoderLayer<float>>({0});
  check_packed<PostNormEncoderLayer<float>>({0, 0, 0});
}

// Of equals each thread takes some; one that is longer than all others is work for all threads.
TEST(packed_attention_has_the_same_bits_for_any_number_of_threads) {
  const auto layer = initialised<PostNormEncoderLayer<float>>(kSizes);
  for (const auto& starts : {std::vector<Index>{0, 70, 71, 130, 260, 300}, {0, 900, 910}}) {
    Tensor<float> x({starts.back(), kWidth});
    Initialiser random(11);
    random.normal(x);
    std::vector<Tensor<float>> results;
    for (const int threads : {1, 2, 3, 12}) {
      const auto before = override_num_threads(threads);
      results.push_back(layer.forward_packed(x, starts));
      override_num_threads(before);
    }
    for (const auto& result : results) {
      CHECK(std::equal(result.data(), result.data() + result.size(), results[0].data()));
    }
  }
}

TEST(packed_sequences_must_cover_the_rows_in_order) {
  const auto layer = initialised<PostNormEncoderLayer<float>>(kSizes);
  const Tensor<float> x = Tensor<float>::full({5, kWidth}, 1.0f);
  for (const std::vector<Index>& starts : {std::vector<Index>{}, {1, 5}, {0, 4}, {0, 6}, {0, 4, 3, 5}}) {
    CHECK(message_of<std::invalid_argument>([&] { layer.forward_packed(x, starts); }) ==
          "starts must rise from 0 to the 5 rows of x");
  }
  const Tensor<float> batch = Tensor<float>::full({1, 5, kWidth}, 1.0f);
  CHECK(message_of<std::invalid_argument>([&] { layer.forward_packed(batch, {0, 5}); }) ==
        "x must have the shape (total, 24), got (1, 5, 24)");
}

}  // namespace blasformer
