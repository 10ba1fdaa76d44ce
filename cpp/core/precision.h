#pragma once

namespace blasformer {

// How exactly float32 products are computed.
enum class Precision {
  highest,  // never less accurate than float32 multiply-adds, whatever instructions are used
  high,     // relative errors of about 1e-5
  medium,   // operands rounded to bfloat16
  ieee,     // float32 multiply-adds only
};

// That of products called for by this thread. A task of parallel_for has that of the thread that called it.
Precision current_precision();
void set_current_precision(Precision precision);

}  // namespace blasformer
