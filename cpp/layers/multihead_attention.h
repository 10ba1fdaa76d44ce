#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "layers/attention.h"
#include "layers/initialiser.h"
#include "layers/linear.h"
#include "layers/parameters.h"
#include "layers/rotary.h"

namespace blasformer {

// Attention weights somebody asked for, before dropout: (.., heads, rows, key_length), or (.., rows,
// key_length) for their mean.
template <class T>
struct AskedWeights {
  WeightSelection selection;
  Tensor<T> weights;
};

// concat over heads of attention(query W_q^T, key W_k^T, value W_v^T), times W_o^T (Vaswani et al. 2017,
// section 3.2.2). A head is a range of columns of the projected rows and is read in place.
template <class T>
struct MultiheadAttention {
  using Scalar = T;
  Index num_heads, num_kv_heads, head_dim;
  double dropout_p;
  // The rows of the query's, the key's and the value's projection, one below the other: (num_heads + 2
  // num_kv_heads) head_dim rows in all. Widths of their own for key or value keep the three apart: then
  // in_proj_weight is empty.
  Tensor<T> in_proj_weight;                               // (rows, embed_dim)
  Tensor<T> q_proj_weight, k_proj_weight, v_proj_weight;  // (.., embed_dim), (.., kdim), (.., vdim)
  Tensor<T> in_proj_bias;                                 // (rows,), or empty
  Linear<T> out_proj;                                     // (embed_dim, embed_dim)
  std::optional<RotaryPositions> rotary;                  // of projected queries and keys
  std::array<std::optional<LowRank<T>>, 3> adapters;      // of the query's, key's and value's projection
  // Of in_proj_weight as a whole, for models whose published name for it is one; only for self-attention.
  std::optional<LowRank<T>> in_proj_adapter;
  std::array<PackedWeight<T>, 3> packed;  // of the three projections; of in_proj_weight the first

  // Columns [first_column, first_column + heads * head_dim) of dense rows (batch, length, ..) or (length,
  // ..).
  struct Projected {
    Tensor<T> rows;
    Index first_column = 0;
  };
  struct Projections {
    Projected query, key, value;
  };
  struct Saved {
    Tensor<T> query, key, value;  // the inputs; empty where they were not given
    Projections projections;
    AttentionArguments arguments;                    // masks that the caller keeps alive
    std::vector<Index> starts;                       // of packed sequences, or nothing
    std::vector<AttentionStatistics<T>> statistics;  // of each packed sequence, or of all that there is
    typename Linear<T>::Saved out_proj;              // its input is the output of attention

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      for (const Tensor<T>* tensor :
           {&query, &key, &value, &projections.query.rows, &projections.key.rows, &projections.value.rows})
        visit(*tensor);
      for (const AttentionStatistics<T>& normalisers : statistics) {
        visit(normalisers.maximum);
        visit(normalisers.reciprocal_sum);
      }
      out_proj.each_tensor(visit);
    }
  };

  // num_kv_heads divides num_heads; embed_dim is a multiple of num_heads.
  MultiheadAttention(Index embed_dim, Index num_heads, Index num_kv_heads, Index kdim, Index vdim,
                     double dropout_p = 0, bool with_bias = true,
                     const std::optional<RotaryPositions>& rotary = std::nullopt);

  Index embed_dim() const { return out_proj.out_features(); }
  Index kdim() const { return k_proj_weight.size() == 0 ? embed_dim() : k_proj_weight.extent(1); }
  Index vdim() const { return v_proj_weight.size() == 0 ? embed_dim() : v_proj_weight.extent(1); }

  void initialise(Initialiser& random);

  // query (batch, length, embed_dim) or (length, embed_dim). key null: query; value null: key. `arguments`
  // says who may attend to whom and carries the seed of dropout; its query, key, value and dropout_p are
  // filled in here.
  Tensor<T> forward(const Tensor<T>& query, const Tensor<T>* key, const Tensor<T>* value,
                    AttentionArguments arguments = {}, Saved* saved = nullptr,
                    AskedWeights<T>* asked = nullptr, Tensor<T>* out = nullptr) const;
  Tensor<T> forward(const Tensor<T>& x, const AttentionArguments& arguments = {}, Saved* saved = nullptr,
                    AskedWeights<T>* asked = nullptr, Tensor<T>* out = nullptr) const {
    return forward(x, nullptr, nullptr, arguments, saved, asked, out);
  }

  // The gradients of the inputs. An input that was not given has none of its own: its share is part of that
  // of the input it stood for.
  struct InputGradients {
    Tensor<T> query, key, value;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(query);
      visit(key);
      visit(value);
    }
  };
  InputGradients backward(const Saved& saved, const Tensor<T>& d_y, MultiheadAttention& gradients,
                          Write write) const;

  // Sequences of different lengths without padding: rows [starts[i], starts[i + 1]) of x (total, embed_dim)
  // are sequence i, which attends to itself alone, as `arguments` (without lengths, segments and arrays of a
  // batch) allows.
  Tensor<T> forward_packed(const Tensor<T>& x, const std::vector<Index>& starts,
                           const AttentionArguments& arguments = {}, Saved* saved = nullptr) const;

  // The three projections alone. seed: of the dropout of adapters.
  Projections project(const Tensor<T>& query, const Tensor<T>& key, const Tensor<T>& value,
                      std::optional<std::uint64_t> seed, Pass pass) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    if (self.in_proj_weight.size() > 0) {
      visit("in_proj_weight", self.in_proj_weight);
    } else {
      visit("q_proj_weight", self.q_proj_weight);
      visit("k_proj_weight", self.k_proj_weight);
      visit("v_proj_weight", self.v_proj_weight);
    }
    if (!self.in_proj_bias.empty()) visit("in_proj_bias", self.in_proj_bias);
    each_parameter_of("out_proj", self.out_proj, visit);
    if (self.in_proj_adapter) each_parameter_of("in_proj", *self.in_proj_adapter, visit);
    for (std::size_t i = 0; i < 3; ++i) {
      if (self.adapters[i]) each_parameter_of(kProjectionNames[i], *self.adapters[i], visit);
    }
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    each_projection(self, kProjectionNames, visit);
    each_linear_of("out_proj", self.out_proj, visit);
  }
  // The projections of query, key and value, by names of the caller's.
  template <class Self, class Visit>
  static void each_projection(Self& self, const std::array<const char*, 3>& names, Visit&& visit) {
    const bool stacked = self.in_proj_weight.size() > 0;
    const Tensor<T>* const weights[3] = {&self.q_proj_weight, &self.k_proj_weight, &self.v_proj_weight};
    const std::array<Index, 4> rows = self.first_rows();
    for (std::size_t i = 0; i < 3; ++i) {
      visit(std::string(names[i]),
            AdaptedWeight<T>{stacked ? self.in_proj_weight : *weights[i], stacked ? rows[i] : 0,
                             rows[i + 1] - rows[i], &self.packed[stacked ? 0 : i]},
            self.adapters[i]);
    }
  }

 private:
  static constexpr std::array<const char*, 3> kProjectionNames = {"q_proj", "k_proj", "v_proj"};

  std::array<Index, 4> first_rows() const;
  void check_inputs(const Tensor<T>& query, const Tensor<T>& key, const Tensor<T>& value) const;
  // A packed sequence: rows [first, first + length) of its projections; nothing for all there is.
  struct Sequence {
    Index first, length;
    std::uint64_t number;
  };
  AttentionArguments attention_arguments(const AttentionArguments& arguments, const Projections& projections,
                                         const std::optional<Sequence>& sequence) const;
  // Turns queries and keys in place by their positions, or their gradients back. They lie in these rows as
  // the projections do.
  enum class Turn { forward, back };
  void turn(Turn direction, const AttentionArguments& arguments, const std::vector<Index>& starts,
            const Projections& projections, Tensor<T>& query_rows, Tensor<T>& key_rows) const;
  template <class Attend>
  void each_sequence(const std::vector<Index>& starts, const Attend& attend) const;
  void attention_gradients(const Saved& saved, const Tensor<T>& d_attended, Tensor<T>* d_rows) const;
};

}  // namespace blasformer
