#pragma once

// Sequences of ids as Python gives them to models: checked, in memory of their own.

#include <cstdint>

#include "bindings/arrays.h"
#include "core/tensor.h"
#include "models/sequences.h"

namespace blasformer::bindings {

struct SequenceInput {
  TokenSequences sequences;
  bool batched;  // whether the ids had an axis for the batch

  // A result (batch, ...) as Python gets it: without the axis that the ids did not have.
  template <class T>
  Tensor<T> like_ids(const Tensor<T>& result) const {
    if (batched) return result;
    return Tensor<T>(result.memory(), Shape(result.shape().begin() + 1, result.shape().end()));
  }
};

// ids (batch, length) or (length,) of integers; lengths (batch,) or None: ids beyond them are not looked at;
// segments like ids or None: runs of equal numbers are sequences of their own, which positions are counted
// in. ids_name, lengths_name: how errors call the first two.
SequenceInput token_sequences(py::object ids, py::object lengths, py::object segments,
                              const char* ids_name = "ids", const char* lengths_name = "lengths");

// That a vocabulary has these ids, called as Python calls them: embeddings would find out, but not the name.
void require_known_ids(const Tensor<std::int64_t>& ids, Index vocab_size, const char* name);

// The targets for each id: given ones, of the shape of the ids, or if they are None the next ids, whose last
// column then is target only and no input. Where there is no token, and where the next id is of another
// segment, the target is ignore_index.
Tensor<std::int64_t> target_ids(const py::object& targets, std::int64_t ignore_index, SequenceInput& input);

}  // namespace blasformer::bindings
