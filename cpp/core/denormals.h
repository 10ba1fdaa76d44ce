#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace blasformer {

// How the calling thread rounds and what it makes of denormals.
#if defined(__SSE2__)
inline unsigned floating_point_mode() { return _mm_getcsr(); }
inline void set_floating_point_mode(unsigned mode) { _mm_setcsr(mode); }
#else
inline unsigned floating_point_mode() { return 0; }
inline void set_floating_point_mode(unsigned) {}
#endif

// Flushes denormals to zero while it lives (they are up to 200 times slower) and puts the thread's setting
// back.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }  // FTZ | DAZ
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushDenormals() = default;
#endif
 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace blasformer
