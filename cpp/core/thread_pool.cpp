#include "core/thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/available_cores.h"
#include "core/batch_invariance.h"
#include "core/denormals.h"
#include "core/interrupt.h"
#include "core/precision.h"
#include "core/require.h"
#include "core/warning.h"

namespace blasformer {

namespace {

using Clock = std::chrono::steady_clock;

// Every thread gets at least this much to do. A sleeping worker starts its first task 10 to 30 us after it is
// woken (a spinning one after 0.1 us), and waking it costs the calling thread 2 us or more.
constexpr double kLeastWorkPerThread = 10e3;        // ns
constexpr double kLeastWorkOfSpinningThread = 2e3;  // ns

// A spinning worker is given no less than what takes so many times as long as a cache line to its core and
// back, as the pool measures it: 0.06 to 0.12 us between cores that share their last cache. Between those
// that do not a program that did nothing else took 0.3 to 0.4 us (and 0.055 between the former), and a
// virtual machine's cores may be moved while it runs. Beside that every thread reads what others have
// written, at 6 and 20 ns a line. Old over new time with far cores where 2 us sufficed before, two threads,
// Zen 4: `linear` of 64 rows, 64 -> 64 features, 1.29, an encoder layer of 2, 3 and 6 tokens of 128 features
// 1.40, 1.31 and 1.05. With twice as many round trips and no regard to what is read, gelu of 16384 numbers is
// 0.81 times as fast, a layer of 64 tokens of 64 features 0.91 times.
constexpr double kRoundTripsOfLeastWork = 7.5, kBytesOfRoundTrip = 2048;
constexpr auto kTimeBetweenMeasurements = std::chrono::milliseconds(1);
// Who did not answer, most likely as it was still waking up, is asked again after so long.
constexpr auto kTimeBetweenQuestions = std::chrono::microseconds(100);
// A worker that has not been measured for so long, mostly as it sleeps, counts as near: awake, it is asked.
constexpr auto kTimeOfMeasurement = std::chrono::milliseconds(20);

// Loops that are too small to wake anybody, but not to be shared, wake a worker nevertheless after so many in
// a row, each less than the spinning time after the one before: the next ones find it spinning.
constexpr int kLoopsInARow = 8;

// How long a worker without work spins before it sleeps: long enough to bridge the gap between the loops of
// one call, far too short to be seen as load or to take a core from another library.
constexpr auto kSpinTime = std::chrono::microseconds(50);

constexpr auto kInterruptPeriod = std::chrono::milliseconds(10);

// A thread that could not be created (RLIMIT_NPROC, no memory) is not asked for again for this long.
constexpr auto kCreationRetryTime = std::chrono::seconds(1);

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins until the condition holds or the spinning time is over; returns whether it holds.
template <class Condition>
bool spin_until(Condition condition) {
  const auto holds_soon = [&] {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      pause_briefly();
    }
    return false;
  };
  if (holds_soon()) return true;  // asking for the time takes as long as several tries
  const Clock::time_point end = Clock::now() + kSpinTime;
  do {
    if (holds_soon()) return true;
  } while (Clock::now() < end);
  return condition();
}

// One thread waits until another has set it; waiting resets it.
class Event {
 public:
  void set() {
    const std::lock_guard lock(mutex_);
    is_set_ = true;
    condition_.notify_one();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    condition_.wait(lock, [this] { return is_set_; });
    is_set_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool is_set_ = false;
};

thread_local bool inside_task = false;

// Asks every few milliseconds whether the user wants to stop; throws if so. Loops that are far shorter than
// that, even if the estimate of their work should be wrong, do not look at the clock.
class InterruptPoll {
 public:
  explicit InterruptPoll(double work) : is_long_(work > kLeastWork) {
    if (is_long_) last_ = Clock::now();
  }
  void operator()() {
    if (!is_long_) return;
    const Clock::time_point now = Clock::now();
    if (now - last_ < kInterruptPeriod) return;
    last_ = now;
    if (const InterruptCheck check = interrupt_check()) check();
  }

 private:
  static constexpr double kLeastWork = 200e3;  // ns
  const bool is_long_;
  Clock::time_point last_{};
};

// The tasks that a worker begins with: [next, end). When it has none left it takes those of others.
struct alignas(64) Share {
  std::atomic<Index> next;
  Index end;
};

// One call of parallel_for.
class Job {
 public:
  // shares: one for each thread, in use until the job is done.
  Job(Index tasks, BeginFunction begin, TaskFunction function, Share* shares, int threads)
      : begin_(begin), function_(function), shares_(shares), threads_(threads) {
    for (int i = 0; i < threads; ++i) {
      shares[i].next.store(tasks * i / threads, std::memory_order_relaxed);
      shares[i].end = tasks * (i + 1) / threads;
    }
  }

  // Runs tasks until none is left. between_tasks may throw as a task may.
  template <class BetweenTasks>
  void run(int worker, BetweenTasks between_tasks) {
    set_floating_point_mode(mode_);
    set_current_precision(precision_);
    set_batch_invariant(batch_invariant_);
    try {
      bool has_begun = false;
      for (int i = 0; i < threads_; ++i) {
        Share& share = shares_[(worker + i) % threads_];
        for (;;) {
          const Index task = share.next.fetch_add(1, std::memory_order_relaxed);
          if (task >= share.end) break;
          inside_task = true;
          if (!std::exchange(has_begun, true)) begin_(worker);
          function_(task, worker);
          inside_task = false;
          between_tasks();
        }
      }
    } catch (...) {
      inside_task = false;
      for (int i = 0; i < threads_; ++i) shares_[i].next.store(shares_[i].end, std::memory_order_relaxed);
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  void rethrow_error() {
    if (error_) std::rethrow_exception(std::move(error_));
  }

 private:
  const BeginFunction begin_;
  const TaskFunction function_;
  Share* const shares_;
  const int threads_;
  // Those of the calling thread, so that results do not depend on who runs a task.
  const unsigned mode_ = floating_point_mode();
  const Precision precision_ = current_precision();
  const bool batch_invariant_ = batch_invariant();
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

// A thread of the pool and the word through which it is given work. The word holds a job that the worker has
// not taken yet, or one of the states below; either side changes it in one atomic step, so that neither ever
// waits for the other to be scheduled before there is something to wait for.
class Worker {
 public:
  explicit Worker(int number) : number_(number) {
    // Signals are for the threads of the program, above all for Python's main thread.
    sigset_t all, previous;
    sigfillset(&all);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &previous);
    struct Restore {
      const sigset_t& mask;
      ~Restore() { pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
    } restore{previous};
    std::thread([this] { work(); }).detach();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  int number() const { return number_; }

  // Looking for work, or busy; it may fall asleep the next moment.
  bool is_awake() const { return state_.load(std::memory_order_relaxed) != kAsleep; }

  // How long every thread must have to work if this one, which spins, is to be given a part. In nanoseconds.
  double least_work(const Work& work, Clock::time_point now) const {
    if (now - measured_ > kTimeOfMeasurement) return kLeastWorkOfSpinningThread;
    const double exchange = static_cast<double>(work.exchanged_bytes) / kBytesOfRoundTrip;
    return std::clamp((kRoundTripsOfLeastWork + exchange) * round_trip_, kLeastWorkOfSpinningThread,
                      kLeastWorkPerThread);
  }

  // Notes how long the worker takes to answer, if it looks for work and has not been asked just before;
  // returns whether it was asked. For the thread that holds the pool.
  bool measure_round_trip(Clock::time_point now) {
    if (now < next_question_) return false;
    constexpr int tries = 3, most_pauses = 100;
    constexpr auto most_time = std::chrono::microseconds(5);
    Clock::duration of_clock = most_time, whole = most_time;
    for (int i = 0; i < tries; ++i) {
      const Clock::time_point before = Clock::now(), begin = Clock::now();
      std::uintptr_t state = kIdle;
      if (!state_.compare_exchange_strong(state, kAsked)) break;
      next_question_ = now + kTimeBetweenQuestions;
      for (int k = 0; k < most_pauses && state_.load(std::memory_order_relaxed) == kAsked; ++k)
        pause_briefly();
      state = kAsked;
      if (state_.compare_exchange_strong(state, kIdle)) break;  // still waking up, or without a core
      whole = std::min(whole, Clock::now() - begin);
      of_clock = std::min(of_clock, begin - before);
    }
    if (whole < most_time) {  // else one of the two has lost its core
      round_trip_ = std::chrono::duration<double, std::nano>(whole - of_clock).count();
      measured_ = now;
      next_question_ = now + kTimeBetweenMeasurements;
    }
    return next_question_ > now;
  }

  void give(Job& job) {
    if (state_.exchange(address(&job)) == kAsleep) wake_.set();
  }

  // Takes the job back if the worker has not begun it, else returns when it has finished. False if it never
  // will, as the thread was left behind in the process that this one was forked from.
  bool finish(Job& job, bool thread_exists) {
    std::uintptr_t state = address(&job);
    if (state_.compare_exchange_strong(state, kIdle)) return true;
    if (!thread_exists) return state != kBusy;
    if (spin_until([this] { return state_.load(std::memory_order_acquire) != kBusy; })) return true;
    state = kBusy;
    if (state_.compare_exchange_strong(state, kAwaited)) done_.wait();
    return true;
  }

 private:
  static constexpr std::uintptr_t kIdle = 0;     // looking for work
  static constexpr std::uintptr_t kAsleep = 1;   // must be woken when given work
  static constexpr std::uintptr_t kBusy = 2;     // running a job
  static constexpr std::uintptr_t kAwaited = 3;  // running a job whose caller sleeps until it is done
  static constexpr std::uintptr_t kAsked = 4;    // to say kIdle at once, while the caller waits for that
  static std::uintptr_t address(Job* job) {
    return reinterpret_cast<std::uintptr_t>(job);
  }  // aligned: never a state

  void work() {
    inside_task = false;
    for (;;) {
      std::uintptr_t state = kIdle;
      const auto has_job = [&] { return (state = state_.load(std::memory_order_relaxed)) != kIdle; };
      if (!spin_until(has_job)) {
        if (state_.compare_exchange_strong(state, kAsleep)) wake_.wait();
        continue;
      }
      if (state == kAsked) {
        state_.compare_exchange_strong(state, kIdle);
        continue;
      }
      if (!state_.compare_exchange_strong(state, kBusy)) continue;  // the caller has taken it back
      reinterpret_cast<Job*>(state)->run(number_, [] {});
      if (state_.exchange(kIdle) == kAwaited) done_.set();
    }
  }

  const int number_;
  double round_trip_ = 0;  // ns
  Clock::time_point next_question_{}, measured_{};
  alignas(64) std::atomic<std::uintptr_t> state_{kIdle};
  Event wake_, done_;
};

class Pool {
 public:
  // False if somebody else is using the pool.
  bool try_acquire() { return !in_use_.exchange(true, std::memory_order_acquire); }
  void release() { in_use_.store(false, std::memory_order_release); }

  // The threads are not here any more: this is a child process.
  void lose_threads() { threads_exist_ = false; }

  // For the job that runs: kMaxThreads of them.
  Share* shares() { return shares_.data(); }

  // Who takes part in a job beside the caller, in the order of their numbers.
  struct Helpers {
    std::array<Worker*, kMaxThreads> workers;
    std::size_t count = 0;
    int threads() const { return count == 0 ? 1 : workers[count - 1]->number() + 1; }
  };

  // For up to `threads` threads: `worth_waking` - 1 workers, and others if they are awake; the first that is
  // not, if no one is and `wakes_one`. All of them near enough for so much work.
  Helpers helpers(int threads, int worth_waking, bool wakes_one, const Work& work, Clock::time_point now) {
    grow(std::max(worth_waking, wakes_one ? 2 : 1) - 1);
    Helpers helpers;
    bool has_measured = false;  // one for each loop: answers take time
    for (const std::unique_ptr<Worker>& worker : workers_) {
      if (worker->number() >= threads) break;
      const bool is_woken = worker->number() < worth_waking || (wakes_one && helpers.count == 0);
      if (!is_woken && !worker->is_awake()) continue;
      const double work_of_thread = work.nanoseconds / static_cast<double>(helpers.count + 2);
      if (work_of_thread < kLeastWorkPerThread && !has_measured)
        has_measured = worker->measure_round_trip(now);
      if (work_of_thread >= worker->least_work(work, now)) helpers.workers[helpers.count++] = worker.get();
    }
    return helpers;
  }

  // False if a thread took a part of the job and was lost: the interrupt check forked this process.
  bool run(Job& job, double work, const Helpers& helpers) {
    for (std::size_t i = 0; i < helpers.count; ++i) helpers.workers[i]->give(job);
    job.run(0, InterruptPoll(work));
    bool complete = true;
    for (std::size_t i = 0; i < helpers.count; ++i)
      complete = helpers.workers[i]->finish(job, threads_exist_) && complete;
    return complete;
  }

 private:
  void grow(int count) {
    if (static_cast<int>(workers_.size()) >= count || Clock::now() < next_creation_) return;
    try {
      while (static_cast<int>(workers_.size()) < count) {
        workers_.push_back(std::make_unique<Worker>(static_cast<int>(workers_.size()) + 1));
      }
    } catch (const std::exception&) {  // system_error or bad_alloc: fewer threads do the same work
      next_creation_ = Clock::now() + kCreationRetryTime;
    }
  }

  std::atomic<bool> in_use_{false}, threads_exist_{true};
  std::array<Share, kMaxThreads> shares_;
  std::vector<std::unique_ptr<Worker>> workers_;
  Clock::time_point next_creation_{};
};

// Never destroyed: its threads may still be at work when the process ends, and after a fork they do not exist
// in the child, which makes a pool of its own.
std::atomic<Pool*> current_pool{nullptr};

Pool& pool() {
  Pool* existing = current_pool.load(std::memory_order_acquire);
  if (existing != nullptr) return *existing;
  [[maybe_unused]] static const int registered = pthread_atfork(nullptr, nullptr, [] {
    if (Pool* const parents = current_pool.exchange(nullptr)) parents->lose_threads();
  });
  auto created = std::make_unique<Pool>();
  if (current_pool.compare_exchange_strong(existing, created.get())) return *created.release();
  return *existing;
}

void run_serially(Index tasks, double work, BeginFunction begin, TaskFunction function) {
  InterruptPoll poll(work);
  if (tasks > 0) begin(0);
  for (Index task = 0; task < tasks; ++task) {
    function(task, 0);
    if (!inside_task) poll();
  }
}

// The first number of a list such as "4" or "4,2" in an environment variable; 0 if that is not set or empty,
// and, with a warning, if it holds something else.
int positive_number(const char* variable) {
  const char* const text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long number = std::strtol(text, &end, 10);
  if (end != text && (*end == '\0' || *end == ',') && number > 0)
    return static_cast<int>(std::min(number, long{kMaxThreads}));
  warn(std::string("the environment variable ") + variable +
       " is ignored: it must begin with a positive number of threads, such as 4 or 4,2, got " + text);
  return 0;
}

int default_num_threads() {
  const int cores = std::min(available_cores(), kMaxThreads);
  for (const char* variable : {"BLASFORMER_NUM_THREADS", "OMP_NUM_THREADS"}) {
    if (const int number = positive_number(variable)) return std::min(number, cores);
  }
  return cores;
}

std::atomic<int> process_num_threads{0};  // 0: not decided yet
thread_local std::optional<int> overridden_num_threads;

// How many loops in a row have been too small to wake anybody and were not shared.
class LoopsInARow {
 public:
  // One begins: whether it is time to wake a worker.
  bool begin(Clock::time_point now) {
    const bool follows = now.time_since_epoch().count() < until_.load(std::memory_order_relaxed);
    const int count = follows ? count_.load(std::memory_order_relaxed) + 1 : 0;
    count_.store(std::min(count, kLoopsInARow), std::memory_order_relaxed);
    return count >= kLoopsInARow;
  }
  // One is shared.
  void begin_again() { count_.store(0, std::memory_order_relaxed); }
  // A loop of any size ends.
  void end() {
    until_.store((Clock::now() + kSpinTime).time_since_epoch().count(), std::memory_order_relaxed);
  }

 private:
  std::atomic<Clock::rep> until_{0};
  std::atomic<int> count_{0};
} loops_in_a_row;

int useful_threads(Index tasks, double work, int threads, double least_work) {
  const double useful = std::min(static_cast<double>(std::min<Index>(tasks, threads)), work / least_work);
  return useful > 1 ? static_cast<int>(useful) : 1;
}

void require_sane(int count) {
  require(count >= 1 && count <= kMaxThreads, "the number of threads must be from 1 to ", kMaxThreads,
          ", got ", count);
}

}  // namespace

int num_threads() {
  if (inside_task) return 1;
  if (overridden_num_threads) return *overridden_num_threads;
  int count = process_num_threads.load(std::memory_order_relaxed);
  if (count == 0) {
    const int decided = default_num_threads();
    count = process_num_threads.compare_exchange_strong(count, decided) ? decided : count;
  }
  return count;
}

void set_num_threads(int count) {
  require_sane(count);
  process_num_threads.store(count, std::memory_order_relaxed);
}

std::optional<int> override_num_threads(std::optional<int> count) {
  if (count) require_sane(*count);
  return std::exchange(overridden_num_threads, count);
}

int planned_threads(Index tasks, double work, int threads) {
  return useful_threads(tasks, work, threads, kLeastWorkPerThread);
}

int most_threads(Index tasks, double work, int threads) {
  return useful_threads(tasks, work, threads, kLeastWorkOfSpinningThread);
}

void parallel_for(Index tasks, const Work& work, TaskFunction function, int threads) {
  parallel_for(tasks, work, [](int) {}, function, threads);
}

void parallel_for(Index tasks, const Work& work, BeginFunction begin, TaskFunction function, int threads) {
  // Zen 4, two threads, called again and again: where workers that spin are given less than those who sleep,
  // layer_norm and gelu of 16384 numbers are 1.4 and 1.6 times as fast, attention of 8 heads of 32 tokens 1.8
  // times, training steps of layers of 64 to 256 features 1.05 to 1.12 times.
  const int most = inside_task ? 1 : most_threads(tasks, work.nanoseconds, threads);
  if (most == 1) return run_serially(tasks, work.nanoseconds, begin, function);
  struct AtEnd {
    ~AtEnd() { loops_in_a_row.end(); }
  } at_end;
  const Clock::time_point now = Clock::now();
  const int worth_waking = planned_threads(tasks, work.nanoseconds, threads);
  const bool wakes_one = worth_waking == 1 && loops_in_a_row.begin(now);
  Pool& shared = pool();
  if (!shared.try_acquire()) return run_serially(tasks, work.nanoseconds, begin, function);
  const Pool::Helpers helpers = shared.helpers(most, worth_waking, wakes_one, work, now);
  if (helpers.count == 0) {
    shared.release();
    return run_serially(tasks, work.nanoseconds, begin, function);
  }
  if (worth_waking == 1) loops_in_a_row.begin_again();
  Job job(tasks, begin, function, shared.shares(), helpers.threads());
  const bool complete = shared.run(job, work.nanoseconds, helpers);
  shared.release();
  job.rethrow_error();
  if (!complete) {
    fail<std::runtime_error>(
        "this process was forked in the middle of a call and lacks the threads to finish it: call again");
  }
}

}  // namespace blasformer
