#include "layers/optimiser.h"

#include <algorithm>
#include <cmath>

#include "core/denormals.h"
#include "core/thread_pool.h"

namespace blasformer {

namespace {

constexpr Index kChunk = 16384;  // elements of one parameter that one task works on

// A part of one of the parameters: elements [first, first + size) of the one with that number, counted
// through both precisions.
struct Chunk {
  std::size_t parameter;
  Index first, size;
};

std::vector<Chunk> chunks_of(const ParameterUpdates& updates) {
  std::vector<Chunk> chunks;
  std::size_t number = 0;
  const auto cut = [&](Index size) {
    for (Index first = 0; first < size; first += kChunk)
      chunks.push_back({number, first, std::min(kChunk, size - first)});
    ++number;
  };
  for (const auto& one : updates.single_precision) cut(one.size);
  for (const auto& one : updates.double_precision) cut(one.size);
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
