#pragma once

namespace blasformer::BLASFORMER_ISA {

// What the files of an instruction set export, and all that they do: a specialisation for each of their
// tables.
template <class Table>
const Table& table();

}  // namespace blasformer::BLASFORMER_ISA
