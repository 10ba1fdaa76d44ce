#pragma once

#include <string>
#include <vector>

namespace blasformer {

// Instruction sets for vectors, from the one every x86-64 has to the newest; the order is that of preference.
enum class Isa { baseline, avx2, avx512 };

// What multiplies bfloat16 numbers faster than float32 ones are multiplied.
enum class TileUnit {
  none,
  reference,    // nothing does: the arithmetic of AMX in plain C++, for tests on any CPU
  avx512_bf16,  // dot products of vectors, twice as fast
  amx,          // tiles, 16 times as fast
};

// One of these is in use: "baseline", "avx2" and "avx512" are an Isa; "amx" is avx512 and tiles;
// "amx_reference" is the newest Isa and the reference of tiles. They are listed in that order.
std::vector<std::string> built_isas();  // those this library has kernels for
// Those this CPU and operating system can run, the newest last, by CPUID and XCR0; amx only where the kernel
// permits it, which is asked once. Without the reference, which runs everywhere.
std::vector<std::string> detected_isas();
// The newest, or what BLASFORMER_ISA says, or use_isa. std::invalid_argument if the variable names another.
std::string active_isa_name();
Isa active_isa();
const char* isa_name(Isa isa);
TileUnit active_tile_unit();
// Throws std::invalid_argument when there is no such name, or the CPU lacks it.
void use_isa(const std::string& name);

}  // namespace blasformer
