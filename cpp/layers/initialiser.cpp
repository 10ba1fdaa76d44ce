#include "layers/initialiser.h"

#include <cmath>
#include <numbers>

#include "core/philox.h"
#include "core/thread_pool.h"

namespace blasformer {

namespace {

// Two numbers in [0, 1) with 53 random bits each: those of block number `index`.
struct UniformPair {
  double first, second;
};

UniformPair uniform_pair(std::uint64_t index, PhiloxKey key) {
  const auto low = static_cast<std::uint32_t>(index), high = static_cast<std::uint32_t>(index >> 32);
  const PhiloxBlock block = philox({{low, high, 0, 0}}, key);
  const auto unit = [](std::uint32_t a, std::uint32_t b) {
    return static_cast<double>((std::uint64_t{a} << 21) ^ (b >> 11)) * 0x1p-53;
  };
  return {unit(block.word[0], block.word[1]), unit(block.word[2], block.word[3])};
}

// parameter[2 i] and parameter[2 i + 1] become draw(pair i).
template <class T, class Draw>
void fill_pairs(Tensor<T>& parameter, std::uint64_t seed, double nanoseconds_per_pair, Draw draw) {
  constexpr Index kPairsPerTask = 8192;
  const PhiloxKey key{{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}};
  const Index size = parameter.size(), pairs = ceil_div(size, 2);
  T* const values = parameter.data();
  parallel_for(ceil_div(pairs, kPairsPerTask), nanoseconds_per_pair * static_cast<double>(pairs),
               [&](Index task, int) {
                 const Index end = std::min(pairs, (task + 1) * kPairsPerTask);
                 for (Index i = task * kPairsPerTask; i < end; ++i) {
                   const UniformPair drawn = draw(uniform_pair(static_cast<std::uint64_t>(i), key));
                   values[2 * i] = static_cast<T>(drawn.first);
                   if (2 * i + 1 < size) values[2 * i + 1] = static_cast<T>(drawn.second);
                 }
               });
}

}  // namespace

template <class T>
void Initialiser::uniform(Tensor<T>& parameter, double bound) {
  fill_pairs(parameter, seed_++, 20, [bound](UniformPair u) {
    return UniformPair{bound * (2 * u.first - 1), bound * (2 * u.second - 1)};
  });
}

template <class T>
void Initialiser::normal(Tensor<T>& parameter, double deviation) {
  fill_pairs(parameter, seed_++, 60, [deviation](UniformPair u) {  // Box and Muller 1958; first < 1
    const double radius = deviation * std::sqrt(-2 * std::log(1 - u.first));
    const double angle = 2 * std::numbers::pi * u.second;
    return UniformPair{radius * std::cos(angle), radius * std::sin(angle)};
  });
}

template void Initialiser::uniform(Tensor<float>&, double);
template void Initialiser::uniform(Tensor<double>&, double);
template void Initialiser::normal(Tensor<float>&, double);
template void Initialiser::normal(Tensor<double>&, double);

}  // namespace blasformer
