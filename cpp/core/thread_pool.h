#pragma once

#include "core/index.h"

namespace blasformer {

// A borrowed callable void(Index task, int worker): two words, no allocation. It must outlive the call it is passed to.
class TaskFunction {
 public:
  template <class Callable>
  TaskFunction(const Callable& callable)  // NOLINT(google-explicit-constructor): made to be converted to
      : object_(&callable),
        call_([](const void* object, Index task, int worker) { (*static_cast<const Callable*>(object))(task, worker); }) {}
  void operator()(Index task, int worker) const { call_(object_, task, worker); }

 private:
  const void* object_;
  void (*call_)(const void*, Index, int);
};

// Calls function(task, worker) for every task in [0, tasks), on up to num_threads() threads, and returns when all are
// done. worker is in [0, num_threads()) and is held by one thread at a time: it selects a workspace. Tasks are handed
// out one by one in rising order; which worker runs one must not influence its result. Serial when tasks <= 1, when
// the estimated work is too small to pay for waking a worker, when called from inside a task, or while another thread is
// using the pool. The first exception of a task stops the handing out and is rethrown here.
// work: estimated duration of all tasks on one core, in nanoseconds.
void parallel_for(Index tasks, double work, TaskFunction function);

// How many threads a parallel_for may use from here: at least 1.
int num_threads();
void set_num_threads(int count);

}  // namespace blasformer
