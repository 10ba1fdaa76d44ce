#pragma once

// Scratch memory of a task, cut into arrays.

#include "core/index.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// Hands out parts of a workspace; with a null workspace it only measures.
class Carver {
 public:
  explicit Carver(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(Index count) {
    T* part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(count * static_cast<Index>(sizeof(T)), 64);
    return part;
  }
  Index used() const { return used_; }

 private:
  char* memory_;
  Index used_ = 0;
};

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
