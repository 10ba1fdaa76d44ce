#include "layers/optimiser.h"

#include <algorithm>
#include <cmath>

#include "core/denormals.h"
#include "core/thread_pool.h"

namespace blasformer {

namespace {

// A part of one of the parameters: elements [first, first + size) of the one with that number, counted
// through both precisions.
struct Chunk {
  std::size_t parameter;
  Index first, size;
  double position;  // of its middle in the parameter, from 0 to 1
};

// Every parameter but small ones in an even number of parts. In their order, those from the beginnings of all
// parameters come first: the threads that take them have formed the gradients of those rows, in the same
// order, and update what they updated in the step before.
std::vector<Chunk> chunks_of(const ParameterUpdates& updates) {
  constexpr Index most_elements = 16384, least_elements = 1024, line = 16;
  std::vector<Chunk> chunks;
  std::size_t number = 0;
  const auto cut = [&](Index size) {
    const Index parts = size < 2 * least_elements ? 1 : 2 * ceil_div(size, 2 * most_elements);
    const Index part = round_up(ceil_div(size, parts), line);
    for (Index first = 0; first < size; first += part) {
      const Index count = std::min(part, size - first);
      const double middle = static_cast<double>(first) + 0.5 * static_cast<double>(count);
      chunks.push_back({number, first, count, middle / static_cast<double>(size)});
    }
    ++number;
  };
  for (const auto& one : updates.single_precision) cut(one.size);
  for (const auto& one : updates.double_precision) cut(one.size);
  std::ranges::stable_sort(chunks, {}, &Chunk::position);
  return chunks;
}

// Calls body(update, chunk, task) for all chunks, in parallel.
template <class Body>
void for_each_chunk(const ParameterUpdates& updates, const std::vector<Chunk>& chunks, double nanoseconds,
                    const Body& body) {
  double elements = 0;
  for (const Chunk& chunk : chunks) elements += static_cast<double>(chunk.size);
  const std::size_t singles = updates.single_precision.size();
  parallel_for(static_cast<Index>(chunks.size()), nanoseconds * elements, [&](Index task, int) {
    const FlushDenormals guard;
    const Chunk& chunk = chunks[static_cast<std::size_t>(task)];
    if (chunk.parameter < singles) {
      body(updates.single_precision[chunk.parameter], chunk, task);
    } else {
      body(updates.double_precision[chunk.parameter - singles], chunk, task);
    }
  });
}

template <class T>
void follow(const SgdRule& rule, T scale, const ParameterUpdate<T>& one, const Chunk& chunk) {
  const OptimiserKernels<T>& kernels = optimiser_kernels<T>();
  const T* gradient = one.gradient + chunk.first;
  T* parameter = one.parameter + chunk.first;
  if (one.memory[0] == nullptr) {
    kernels.sgd(rule, scale, gradient, chunk.size, parameter);
  } else {
    kernels.sgd_momentum(rule, scale, gradient, chunk.size, parameter, one.memory[0] + chunk.first);
  }
}

template <class T>
void follow(const AdamRule& rule, T scale, const ParameterUpdate<T>& one, const Chunk& chunk) {
  optimiser_kernels<T>().adam(rule, scale, one.gradient + chunk.first, chunk.size,
                              one.parameter + chunk.first, one.memory[0] + chunk.first,
                              one.memory[1] + chunk.first);
}

template <class T>
void follow(const LionRule& rule, T scale, const ParameterUpdate<T>& one, const Chunk& chunk) {
  optimiser_kernels<T>().lion(rule, scale, one.gradient + chunk.first, chunk.size,
                              one.parameter + chunk.first, one.memory[0] + chunk.first);
}

template <class Rule>
void update_all(const ParameterUpdates& updates, const std::vector<Rule>& rules, double norm,
                double max_norm) {
  constexpr double kNanosecondsPerElement = 1;
  const double scale = norm > max_norm ? max_norm / norm : 1;
  for_each_chunk(updates, chunks_of(updates), kNanosecondsPerElement,
                 [&]<class T>(const ParameterUpdate<T>& one, const Chunk& chunk, Index) {
                   follow(rules[one.rule], static_cast<T>(scale), one, chunk);
                 });
}

}  // namespace

double gradient_norm(const ParameterUpdates& updates) {
  constexpr double kNanosecondsPerElement = 0.3;
  const std::vector<Chunk> chunks = chunks_of(updates);
  std::vector<double> sums(chunks.size());
  for_each_chunk(updates, chunks, kNanosecondsPerElement,
                 [&]<class T>(const ParameterUpdate<T>& one, const Chunk& chunk, Index task) {
                   sums[static_cast<std::size_t>(task)] =
                       optimiser_kernels<T>().sum_of_squares(one.gradient + chunk.first, chunk.size);
                 });
  double total = 0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

void update(const ParameterUpdates& updates, const std::vector<SgdRule>& rules, double norm,
            double max_norm) {
  update_all(updates, rules, norm, max_norm);
}
void update(const ParameterUpdates& updates, const std::vector<AdamRule>& rules, double norm,
            double max_norm) {
  update_all(updates, rules, norm, max_norm);
}
void update(const ParameterUpdates& updates, const std::vector<LionRule>& rules, double norm,
            double max_norm) {
  update_all(updates, rules, norm, max_norm);
}

}  // namespace blasformer
