#include "bindings/token_sequences.h"

#include <algorithm>
#include <optional>

#include "bindings/layer.h"

namespace blasformer::bindings {

namespace {

using Ids = Tensor<std::int64_t>;

Ids with_batch_axis(const Ids& ids, bool batched) {
  return batched ? ids : Ids(ids.memory(), {1, ids.extent(0)});
}

// The index of each token within the run of equal segments that it is in.
Ids positions_within(const Ids& segments) {
  Ids positions(segments.shape());
  const Index batch = segments.extent(0), length = segments.extent(1);
  for (Index b = 0; b < batch; ++b) {
    const std::int64_t* const segment = segments.data() + b * length;
    std::int64_t* const position = positions.data() + b * length;
    for (Index i = 0; i < length; ++i)
      position[i] = i > 0 && segment[i] == segment[i - 1] ? position[i - 1] + 1 : 0;
  }
  return positions;
}

// The first `columns` columns from column `first` on.
Ids columns_of(const Ids& ids, Index first, Index columns) {
  Ids part({ids.extent(0), columns});
  for (Index b = 0; b < ids.extent(0); ++b)
    std::copy_n(ids.data() + b * ids.extent(1) + first, columns, part.data() + b * columns);
  return part;
}

// Calls visit(index) for every element of (batch, length) that lies beyond the sequence's length.
template <class Visit>
void each_beyond(const TokenSequences& sequences, Index length, Visit visit) {
  if (sequences.lengths.empty()) return;
  for (Index b = 0; b < sequences.lengths.size(); ++b) {
    for (Index i = sequences.lengths.data()[b]; i < length; ++i) visit(b * length + i);
  }
}

// Inputs are all ids but the last, targets all but the first.
Ids next_ids(TokenSequences& sequences, std::int64_t ignore_index) {
  const Index batch = sequences.ids.extent(0), columns = std::max<Index>(sequences.ids.extent(1) - 1, 0);
  const Index first = sequences.ids.extent(1) - columns;
  Ids targets = columns_of(sequences.ids, first, columns);
  if (!sequences.segments.empty()) {
    const Ids segments = columns_of(sequences.segments, 0, columns);
    const Ids next_segments = columns_of(sequences.segments, first, columns);
    for (Index i = 0; i < batch * columns; ++i) {
      if (segments.data()[i] != next_segments.data()[i]) targets.data()[i] = ignore_index;
    }
    sequences.segments = segments;
    sequences.positions = columns_of(sequences.positions, 0, columns);
  }
  sequences.ids = columns_of(sequences.ids, 0, columns);
  for (Index b = 0; b < sequences.lengths.size(); ++b) {
    std::int64_t& length = sequences.lengths.data()[b];
    length = std::max<std::int64_t>(length - 1, 0);
  }
  return targets;
}

}  // namespace

SequenceInput token_sequences(py::object ids, py::object lengths, py::object segments, const char* ids_name,
                              const char* lengths_name) {
  Ids given = id_input(ids, ids_name, true);
  require(given.rank() == 1 || given.rank() == 2, ids_name,
          " must have the shape (batch, length) or (length,), got ", shape_text(given.shape()));
  SequenceInput input{{}, given.rank() == 2};
  TokenSequences& sequences = input.sequences;
  sequences.ids = with_batch_axis(given, input.batched);
  const Index batch = sequences.ids.extent(0), length = sequences.ids.extent(1);
  if (!lengths.is_none()) {
    const Ids of_each = integer_input(lengths, lengths_name);
    const Shape expected = input.batched ? Shape{batch} : Shape{};
    require(of_each.shape() == expected, lengths_name, " must have the shape ", shape_text(expected),
            " to fit ", ids_name, ' ', shape_text(given.shape()), ", got ", shape_text(of_each.shape()));
    for (Index b = 0; b < batch; ++b) {
      const std::int64_t n = of_each.data()[b];
      require(n >= 0 && n <= length, lengths_name, " must lie between 0 and the ", length, " columns of ",
              ids_name, ", got ", n);
    }
    sequences.lengths = Ids(of_each.memory(), {batch});
    each_beyond(sequences, length, [&](Index i) { sequences.ids.data()[i] = 0; });
  }
  if (!segments.is_none()) {
    const Ids of_each = integer_input(segments, "segments");
    require(of_each.shape() == given.shape(), "segments must have the shape of ", ids_name, ' ',
            shape_text(given.shape()), ", got ", shape_text(of_each.shape()));
    sequences.segments = with_batch_axis(of_each, input.batched);
    sequences.positions = positions_within(sequences.segments);
  }
  return input;
}

void require_known_ids(const Ids& ids, Index vocab_size, const char* name) {
  const std::int64_t *const first = ids.data(), *const last = first + ids.size();
  const auto* const wrong =
      std::find_if(first, last, [=](std::int64_t id) { return id < 0 || id >= vocab_size; });
  if (wrong != last) {
    fail<std::out_of_range>(name, " must lie in [0, ", vocab_size, "), got ", *wrong, " at position ",
                            wrong - first);
  }
}

Tensor<std::int64_t> target_ids(const py::object& targets, std::int64_t ignore_index, SequenceInput& input) {
  TokenSequences& sequences = input.sequences;
  Ids result;
  if (targets.is_none()) {
    result = next_ids(sequences, ignore_index);
  } else {
    py::object argument = targets;
    const Ids given = id_input(argument, "targets", true);
    const Ids shaped = input.like_ids(sequences.ids);
    require(given.shape() == shaped.shape(), "targets must have the shape of ids ",
            shape_text(shaped.shape()), ", got ", shape_text(given.shape()));
    result = with_batch_axis(given, input.batched);
  }
  each_beyond(sequences, sequences.ids.extent(1), [&](Index i) { result.data()[i] = ignore_index; });
  return result;
}

}  // namespace blasformer::bindings
