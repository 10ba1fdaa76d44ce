#include "models/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/require.h"
#include "core/thread_pool.h"

namespace blasformer {

namespace {

struct Candidate {
  std::int64_t id;
  double weight;  // not normalised
};

bool more_probable(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}

double total_of(const std::vector<Candidate>& candidates) {
  return std::accumulate(candidates.begin(), candidates.end(), 0.0,
                         [](double sum, const Candidate& candidate) { return sum + candidate.weight; });
}

void keep_most_probable(std::vector<Candidate>& candidates, Index count) {
  if (static_cast<Index>(candidates.size()) <= count) return;
  std::nth_element(candidates.begin(), candidates.begin() + count, candidates.end(), more_probable);
  candidates.resize(static_cast<std::size_t>(count));
}

// Keeps the smallest number of the most probable that have the share top_p.
void keep_nucleus(std::vector<Candidate>& candidates, double top_p) {
  const double total = total_of(candidates);
  // Those that all together have less than 1 - top_p are out of the question, without being sorted.
  const double least = (1 - top_p) * total / static_cast<double>(candidates.size());
  const auto maximum = *std::min_element(candidates.begin(), candidates.end(), more_probable);
  std::erase_if(candidates, [&](const Candidate& c) { return c.weight < least && c.id != maximum.id; });
  std::sort(candidates.begin(), candidates.end(), more_probable);
  double sum = 0;
  std::size_t kept = 0;
  while (kept < candidates.size() && (kept == 0 || sum < top_p * total)) sum += candidates[kept++].weight;
  candidates.resize(kept);
}

template <class T>
std::int64_t sample_row(const T* logits, Index vocabulary, const SamplingOptions& options, double uniform) {
  const T* const most_probable = std::max_element(logits, logits + vocabulary);
  const double maximum = static_cast<double>(*most_probable);
  if (options.temperature == 0) return most_probable - logits;
  std::vector<Candidate> candidates(static_cast<std::size_t>(vocabulary));
  for (Index id = 0; id < vocabulary; ++id) {
    const double distance = static_cast<double>(logits[id]) - maximum;
    candidates[static_cast<std::size_t>(id)] = {id, std::exp(distance / options.temperature)};
  }
  if (options.top_k) keep_most_probable(candidates, *options.top_k);
  if (options.top_p < 1) keep_nucleus(candidates, options.top_p);
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  const double aim = uniform * total_of(candidates);
  double sum = 0;
  for (const Candidate& candidate : candidates) {
    sum += candidate.weight;
    if (sum > aim) return candidate.id;
  }
  return candidates.back().id;
}

}  // namespace

template <class T>
void sample(const T* logits, Index rows, Index vocabulary, const SamplingOptions& options,
            const double* uniform, std::int64_t* ids) {
  for (Index row = 0; row < rows; ++row) {
    const T* const of_row = logits + row * vocabulary;
    const bool finite =
        std::none_of(of_row, of_row + vocabulary, [](T logit) { return std::isnan(logit); }) &&
        std::isfinite(*std::max_element(of_row, of_row + vocabulary));
    require(finite,
            "logits must be numbers with a finite maximum, got NaN or Inf: the weights have diverged");
  }
  parallel_for(rows, 10.0 * static_cast<double>(rows * vocabulary), [&](Index row, int) {
    ids[row] = sample_row(logits + row * vocabulary, vocabulary, options, uniform[row]);
  });
}

template void sample(const float*, Index, Index, const SamplingOptions&, const double*, std::int64_t*);
template void sample(const double*, Index, Index, const SamplingOptions&, const double*, std::int64_t*);

}  // namespace blasformer
