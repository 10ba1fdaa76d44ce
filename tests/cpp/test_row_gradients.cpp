// What layers rely on and Python cannot see.

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "core/philox.h"
#include "layers/activations.h"
#include "layers/cross_entropy.h"
#include "layers/dropout.h"
#include "layers/embedding.h"
#include "layers/layer_norm.h"
#include "layers/rms_norm.h"

namespace blasformer {

namespace {

using Values = std::vector<float>;

Values normal(Index size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  Values values(static_cast<std::size_t>(size));
  for (float& value : values) value = distribution(random);
  return values;
}

Values plus(Values a, const Values& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

bool close(const Values& a, const Values& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(a[i] - b[i]) <= 2e-6f * (1 + std::abs(b[i])))) return false;
  }
  return true;
}

// Runs the test once per instruction set, and puts back the one that was active.
template <class Test>
void on_each_isa(Test test) {
  const std::string active = active_isa_name();
  for (const std::string& isa : detected_isas()) {
    use_isa(isa);
    test();
  }
  use_isa(active);
}

}  // namespace

TEST(activations_give_their_value_beside_their_gradient_in_the_same_bits) {
  on_each_isa([] {
    constexpr Index size = 9001;
    const Values x = normal(size, 1), d_y = normal(size, 2);
    for (Activation activation : {Activation::relu, Activation::gelu, Activation::gelu_tanh,
                                  Activation::gelu_sigmoid, Activation::silu}) {
      Values y(x), d_x(d_y), alone(d_y), value(x);
      activate(activation, x.data(), size, y.data());
      activate_backward(activation, x.data(), d_y.data(), size, alone.data());
      activate_backward(activation, value.data(), d_x.data(), size, d_x.data(), value.data());  // in place
      CHECK(value == y);
      CHECK(d_x == alone);
    }
  });
}

TEST(gradients_of_norms_take_in_what_went_around_and_add_to_what_is_there) {
  on_each_isa([] {
    constexpr Index rows = 301, features = 67;
    const Values x = normal(rows * features, 1), d_y = normal(rows * features, 2),
                 weight = normal(features, 3);
    const Values residual = normal(rows * features, 4), before = normal(features, 5);
    Values y(x), mean(rows), reciprocal(rows), d_x(x), d_weight(before), d_bias(before);
    layer_norm<float>(x.data(), rows, features, weight.data(), nullptr, 1e-5, y.data(), mean.data(),
                      reciprocal.data());
    layer_norm_backward<float>(x.data(), mean.data(), reciprocal.data(), d_y.data(), rows, features,
                               weight.data(), d_x.data(), d_weight.data(), d_bias.data(), Write::replace);
    Values in_place(d_y), more_weight(before), more_bias(before);
    layer_norm_backward<float>(x.data(), mean.data(), reciprocal.data(), in_place.data(), rows, features,
                               weight.data(), in_place.data(), more_weight.data(), more_bias.data(),
                               Write::add, residual.data());
    CHECK(close(in_place, plus(d_x, residual)));
    CHECK(close(more_weight, plus(d_weight, before)));
    CHECK(close(more_bias, plus(d_bias, before)));
    Values over_residual(residual);
    layer_norm_backward<float>(x.data(), mean.data(), reciprocal.data(), d_y.data(), rows, features,
                               weight.data(), over_residual.data(), nullptr, nullptr, Write::replace,
                               over_residual.data());
    CHECK(over_residual == in_place);

    rms_norm<float>(x.data(), rows, features, weight.data(), 1e-6, y.data(), reciprocal.data());
    rms_norm_backward<float>(x.data(), reciprocal.data(), d_y.data(), rows, features, weight.data(),
                             d_x.data(), d_weight.data(), Write::replace);
    in_place = d_y;
    more_weight = before;
    rms_norm_backward<float>(x.data(), reciprocal.data(), in_place.data(), rows, features, weight.data(),
                             in_place.data(), more_weight.data(), Write::add, residual.data());
    CHECK(close(in_place, plus(d_x, residual)));
    CHECK(close(more_weight, plus(d_weight, before)));
  });
}

TEST(gradients_of_embeddings_add_to_what_is_there_but_for_padding) {
  constexpr Index dim = 70;
  const std::vector<std::int64_t> ids{3, 1, 3, 0, 3};
  const Values d_y = normal(5 * dim, 1), before = normal(4 * dim, 2);
  Values fresh(before), added(before);
  embedding_backward<float>(ids.data(), 5, d_y.data(), 4, dim, Index{1}, fresh.data(), Write::replace);
  embedding_backward<float>(ids.data(), 5, d_y.data(), 4, dim, Index{1}, added.data(), Write::add);
  CHECK(close(added, plus(fresh, before)));
  for (Index j = 0; j < dim; ++j) {
    const auto of_padding = static_cast<std::size_t>(dim + j);
    CHECK(fresh[of_padding] == 0 && added[of_padding] == before[of_padding]);
  }
}

TEST(dropout_draws_the_words_of_philox_one_by_one) {
  constexpr std::uint64_t seed = 0x123456789abcdef0;
  const PhiloxKey key{{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}};
  on_each_isa([&] {
    for (Index size : {0, 1, 3, 31, 32, 33, 1001, 16385, 50003}) {
      const Values x = normal(size, 1), residual = normal(size, 2);
      for (double p : {0.0, 1e-10, 0.1, 0.5, 1 - 1e-12, 1.0}) {
        Values expected(x), actual(x), with_residual(residual);
        for (Index i = 0; i < size; ++i) {
          const auto block = static_cast<std::uint32_t>(i / 4);
          const std::uint32_t word = philox({{block, 0, 0, 0}}, key).word[i % 4];
          const bool kept = word >= static_cast<std::uint64_t>(p * 0x1p32);
          float& value = expected[static_cast<std::size_t>(i)];
          value = kept ? value * static_cast<float>(1 / (1 - p)) : 0;
        }
        dropout(actual.data(), size, p, seed, actual.data());
        CHECK(actual == expected);
        dropout(x.data(), size, p, seed, with_residual.data(), with_residual.data());
        CHECK(with_residual == plus(expected, residual));
      }
    }
  });
}

TEST(dropout_removes_nan_and_infinity_with_what_it_drops) {
  on_each_isa([] {
    for (double p : {0.5, 1.0}) {
      Values x(1000, NAN), ones(1000, 1);
      dropout(x.data(), 1000, p, 7, x.data());
      dropout(ones.data(), 1000, p, 7, ones.data());
      for (std::size_t i = 0; i < 1000; ++i) CHECK(std::isnan(x[i]) == (ones[i] != 0));
    }
  });
}

// A step made of several batches divides all of them by the tokens of the step.
TEST(cross_entropy_of_parts_adds_up_to_that_of_the_whole) {
  on_each_isa([] {
    constexpr Index rows = 40, classes = 53, first = 13;
    const Values logits = normal(rows * classes, 1);
    std::vector<std::int64_t> targets(rows);
    for (Index i = 0; i < rows; ++i)
      targets[static_cast<std::size_t>(i)] = i % 7 == 3 ? -100 : i * i % classes;
    const CrossEntropyOptions<float> options{-100, 0.1, nullptr};
    const double count = target_weight(targets.data(), rows, classes, options);
    CHECK(count == 34);
    Values whole(logits), parts(logits);
    const double loss =
        cross_entropy(logits.data(), rows, classes, targets.data(), options, count, whole.data());
    double sum = cross_entropy(parts.data(), first, classes, targets.data(), options, count, parts.data());
    sum += cross_entropy(parts.data() + first * classes, rows - first, classes, targets.data() + first,
                         options, count, parts.data() + first * classes);
    CHECK(std::abs(sum - loss) < 1e-12 * loss);
    CHECK(parts == whole);
    float* const without_gradient = nullptr;
    CHECK(cross_entropy(logits.data(), rows, classes, targets.data(), options, count, without_gradient) ==
          loss);
  });
}

TEST(cross_entropy_says_which_target_is_wrong_before_it_writes) {
  Values logits(6, 1);
  const std::vector<std::int64_t> targets{0, 3};
  const std::string message = tests::message_of<std::out_of_range>(
      [&] { cross_entropy<float>(logits.data(), 2, 3, targets.data(), {}, 1, logits.data()); });
  CHECK(message == "targets must be classes in [0, 3) or ignore_index -100, got 3 at position 1");
  CHECK(logits == Values(6, 1));
}

}  // namespace blasformer
