#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace blasformer {

// Draws the initial values of a layer's parameters, one parameter after the other, from one seed. An element
// depends on the seed, on how many parameters were drawn before and on its place, and on nothing else.
class Initialiser {
 public:
  explicit Initialiser(std::uint64_t seed) : seed_(seed) {}

  template <class T>
  void uniform(Tensor<T>& parameter, double bound);  // in [-bound, bound]
  template <class T>
  void normal(Tensor<T>& parameter, double deviation = 1);  // mean 0

 private:
  std::uint64_t seed_;
};

}  // namespace blasformer
