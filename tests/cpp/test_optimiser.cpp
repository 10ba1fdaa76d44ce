// Memory that ends with the last element, of every size around the widths of vectors and the chunks of a
// task: for the sanitizers to watch. The formulas are compared with the reference from Python.

#include <cmath>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "layers/optimiser.h"

namespace blasformer {

namespace {

// The arrays of a few parameters of one size.
template <class T>
struct Parameters {
  Parameters(Index size, Index count) {
    for (Index i = 0; i < count; ++i) {
      arrays.push_back(std::vector<T>(static_cast<std::size_t>(size), T(1)));
      gradients.push_back(std::vector<T>(static_cast<std::size_t>(size), T(2)));
      means.push_back(std::vector<T>(static_cast<std::size_t>(size)));
      mean_squares.push_back(std::vector<T>(static_cast<std::size_t>(size)));
    }
  }

  std::vector<ParameterUpdate<T>> updates(bool with_memory) {
    std::vector<ParameterUpdate<T>> all;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      ParameterUpdate<T> one;
      one.parameter = arrays[i].data();
      one.gradient = gradients[i].data();
      if (with_memory) {
        one.memory[0] = means[i].data();
        one.memory[1] = mean_squares[i].data();
      }
      one.size = static_cast<Index>(arrays[i].size());
      all.push_back(one);
    }
    return all;
  }

  void check_all_are(double value) const {
    for (const auto& array : arrays) {
      for (const T x : array) CHECK(std::abs(static_cast<double>(x) - value) < 1e-6);
    }
  }

  std::vector<std::vector<T>> arrays, gradients, means, mean_squares;
};

// One step of every rule, with which all elements go from 1 to `value`.
template <class Rule>
void check_step(const Rule& rule, Index size, double max_norm, double value, bool with_memory = true) {
  Parameters<float> single(size, 3);
  Parameters<double> twofold(size, 2);
  const ParameterUpdates updates{single.updates(with_memory), twofold.updates(with_memory)};
  const double norm = gradient_norm(updates);
  CHECK(std::abs(norm - 2 * std::sqrt(5 * static_cast<double>(size))) <= 1e-12 * norm);
  update(updates, std::vector<Rule>{rule}, norm, max_norm);
  single.check_all_are(value);
  twofold.check_all_are(value);
}

}  // namespace

TEST(optimisers_reach_every_element_and_no_other) {
  const std::string isa_before = active_isa_name();
  for (const std::string& isa : detected_isas()) {
    use_isa(isa);
    for (Index size = 0; size <= 70; ++size) {
      check_step(SgdRule{0.25, 0.9, 0.0, false}, size, kNoMaximumNorm, 0.5);
      check_step(SgdRule{0.25, 0.0, 0.5, false}, size, kNoMaximumNorm, 0.375, false);
      check_step(AdamRule{0.25, 0.9, 0.99, 0.0, 0.0, true, 0.1, 0.01}, size, kNoMaximumNorm, 0.75);
      check_step(LionRule{0.25, 0.9, 0.99, 0.0}, size, 1e-3, 0.75);
    }
    for (const Index size : {16383, 16384, 16385, 50001})
      check_step(SgdRule{0.25, 0.0, 0.5, true}, size, kNoMaximumNorm, 0.375);
  }
  use_isa(isa_before);
}

TEST(clipped_gradients_have_the_largest_norm_that_is_allowed) {
  for (const Index size : {1, 17, 40000}) {
    const double per_element = 3 / std::sqrt(5 * static_cast<double>(size));  // of a norm of 3
    check_step(SgdRule{1.0, 0.0, 0.0, false}, size, 3.0, 1 - per_element);
  }
}

TEST(the_norm_of_gradients_is_not_finite_if_one_element_is_not) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::size_t place : {std::size_t{0}, std::size_t{31}, std::size_t{20000}}) {
      Parameters<float> parameters(20001, 2);
      parameters.gradients[1][place] = bad;
      CHECK(!std::isfinite(gradient_norm({parameters.updates(false), {}})));
    }
  }
}

}  // namespace blasformer
