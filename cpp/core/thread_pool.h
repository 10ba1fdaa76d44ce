#pragma once

#include <concepts>
#include <optional>

#include "core/index.h"

namespace blasformer {

// A borrowed callable void(Arguments...): two words, no allocation. It must outlive the call it is passed to.
template <class... Arguments>
class BorrowedFunction {
 public:
  template <class Callable>
    requires std::invocable<const Callable&, Arguments...>
  BorrowedFunction(const Callable& callable)  // not explicit: a callable is passed where this is taken
      : object_(&callable), call_([](const void* object, Arguments... arguments) {
          (*static_cast<const Callable*>(object))(arguments...);
        }) {}
  void operator()(Arguments... arguments) const { call_(object_, arguments...); }

 private:
  const void* object_;
  void (*call_)(const void*, Arguments...);
};

// What all tasks of a loop amount to.
struct Work {
  double nanoseconds;  // the estimated duration on one core
  Index exchanged_bytes =
      0;  // of what the loop before wrote: as much as every thread reads, whoever wrote it

  Work(double nanoseconds_, Index exchanged_bytes_ = 0)  // not explicit: most loops tell their duration alone
      : nanoseconds(nanoseconds_), exchanged_bytes(exchanged_bytes_) {}
};

using TaskFunction = BorrowedFunction<Index, int>;  // (task, worker)
using BeginFunction = BorrowedFunction<int>;        // (worker)

// How many threads a parallel_for may use from here: at least 1, and 1 inside a task. It is what
// override_num_threads or set_num_threads gave; before that BLASFORMER_NUM_THREADS, then OMP_NUM_THREADS (the
// first of a list), then the cores this process may use. Those cores also limit the variables, which are
// often set for another machine; what a call asks for is done.
int num_threads();
constexpr int kMaxThreads = 256;
// For the whole process. Throws std::invalid_argument unless 1 <= count <= kMaxThreads.
void set_num_threads(int count);
// For calls from this thread, until it is put back to what it was, which is returned.
std::optional<int> override_num_threads(std::optional<int> count);

// Calls function(task, worker) for every task in [0, tasks), on up to `threads` threads, and returns when all
// are done. worker is in [0, threads) and is held by one thread at a time: it selects a workspace. (Whoever
// makes workspaces asks num_threads() once and passes it on: another thread may change it in between.) Every
// thread begins with its share of the tasks, which are cut evenly in their order, and then takes what is left
// of others': in loops over the same rows each core finds those of the loop before in its own cache. Which
// worker runs a task must not influence its result. Serial when tasks <= 1, when the work is too small to pay
// for waking a worker (one that spins is given less, the nearer its core the less), when called from inside a
// task, or while another thread is using the pool. The first exception of a task stops the handing out and
// is rethrown here; so is that of the interrupt check, which the calling thread asks every few milliseconds
// between tasks. Should that check fork, std::runtime_error in the child tells that the threads which had
// begun a part of the work are not there.
void parallel_for(Index tasks, const Work& work, TaskFunction function, int threads = num_threads());
// The same where every worker calls begin(worker) before its first task, as a part of it.
void parallel_for(Index tasks, const Work& work, BeginFunction begin, TaskFunction function,
                  int threads = num_threads());

// How many threads that parallel_for uses, from outside a task, if the pool is free: where workers sleep, and
// at most where they spin after a loop before.
int planned_threads(Index tasks, double work, int threads = num_threads());
int most_threads(Index tasks, double work, int threads = num_threads());

}  // namespace blasformer
