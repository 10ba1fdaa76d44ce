#include <atomic>
#include <chrono>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "core/available_cores.h"
#include "core/denormals.h"
#include "core/interrupt.h"
#include "core/thread_pool.h"

namespace blasformer {

namespace {

constexpr double kLargeWork = 1e9;
using std::chrono::milliseconds;

// Every task once, by a worker below the number of threads, and no worker number twice at the same time.
bool every_task_runs_once(Index tasks, int threads, double work = kLargeWork) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
  std::vector<std::atomic<int>> held(static_cast<std::size_t>(threads));
  std::atomic<bool> ok = true;
  parallel_for(
      tasks, work,
      [&](Index task, int worker) {
        if (worker < 0 || worker >= threads || held[static_cast<std::size_t>(worker)]++ != 0) ok = false;
        ++runs[static_cast<std::size_t>(task)];
        --held[static_cast<std::size_t>(worker)];
      },
      threads);
  for (const std::atomic<int>& count : runs) ok = ok && count == 1;
  return ok;
}

// Whether the condition holds in one of the tries of a minute.
template <class Condition>
bool soon(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
  }
  return true;
}

// Which workers took a part of work that is worth a spinning worker, but not waking one.
std::set<int> workers_of_little_work() {
  std::set<int> workers;
  std::mutex mutex;
  const auto task = [&](Index, int worker) {
    {
      const std::lock_guard lock(mutex);
      workers.insert(worker);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(1));  // the others' turn, where there is one core
  };
  constexpr double work = 19e3;
  CHECK(planned_threads(8, work, 2) == 1 && most_threads(8, work, 2) == 2);
  parallel_for(8, work, task, 2);
  return workers;
}

}  // namespace

TEST(every_task_runs_once_whatever_the_number_of_threads) {
  for (int threads : {1, 2, 3, 8}) {
    for (Index tasks : {0, 1, 2, 3, 7, 1001}) CHECK(every_task_runs_once(tasks, threads));
  }
}

TEST(thousands_of_short_calls_neither_hang_nor_lose_tasks) {
  for (int i = 0; i < 3000; ++i) CHECK(every_task_runs_once(1 + i % 5, 2 + i % 3));
}

TEST(calls_after_the_workers_have_fallen_asleep_wake_them) {
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(milliseconds(1));
    CHECK(every_task_runs_once(5, 4));
  }
}

// They are asked for an answer once a millisecond: here as they are about to fall asleep, after 50 us.
TEST(no_task_is_lost_while_the_pool_measures_its_workers) {
  using std::chrono::nanoseconds, std::chrono::steady_clock;
  for (int i = 0; i < 300; ++i) {
    const auto last = steady_clock::now() + milliseconds(1);
    for (int k = 0; steady_clock::now() < last; ++k)
      CHECK(every_task_runs_once(2 + k % 7, 2 + i % 3, 4e3 + 500.0 * (k % 32)));
    const auto end = steady_clock::now() + nanoseconds(44000 + 200 * (i % 60));
    while (steady_clock::now() < end) {
    }
    CHECK(every_task_runs_once(5, 3, 15e3));
  }
}

TEST(little_work_on_much_that_others_wrote_is_done_by_the_calling_thread) {
  if (available_cores() < 2) throw tests::Skipped{"one core"};
  const auto is_shared = [](const Work& work) {
    std::atomic<bool> shared = false;
    parallel_for(
        8, work,
        [&](Index, int worker) {
          if (worker > 0) shared = true;
          const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(2);
          while (std::chrono::steady_clock::now() < end) {
          }
        },
        2);
    return shared.load();
  };
  const auto is_never_shared = [&](const Work& work) {
    for (int i = 0; i < 60; ++i) {
      if (is_shared(work)) return false;
    }
    return true;
  };
  for (int i = 0; i < 10; ++i) {
    CHECK(soon([&] { return is_shared(19e3); }));
    CHECK(soon([&] { return is_never_shared({19e3, Index{1} << 30}); }));
  }
}

TEST(three_threads_work_at_once_when_asked_to) {
  std::atomic<int> arrived = 0;
  parallel_for(
      3, kLargeWork,
      [&](Index, int) {
        ++arrived;
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
        while (arrived < 3 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
      },
      3);
  CHECK(arrived == 3);
}

TEST(every_worker_begins_once_before_its_first_task) {
  for (int threads : {1, 2, 5}) {
    for (double work : {kLargeWork, 8e3, 100.0}) {
      std::vector<std::atomic<int>> begun(static_cast<std::size_t>(threads)), has_run(begun.size());
      std::atomic<bool> ok = true;
      parallel_for(
          23, work,
          [&](int worker) {
            const auto w = static_cast<std::size_t>(worker);
            if (has_run[w] > 0) ok = false;
            ++begun[w];
          },
          [&](Index, int worker) {
            const auto w = static_cast<std::size_t>(worker);
            if (begun[w] != 1) ok = false;
            ++has_run[w];
          },
          threads);
      for (std::size_t w = 0; w < begun.size(); ++w) ok = ok && (begun[w] == 1) == (has_run[w] > 0);
      CHECK(ok);
    }
  }
}

TEST(nobody_begins_where_there_are_no_tasks) {
  bool has_begun = false;
  parallel_for(0, kLargeWork, [&](int) { has_begun = true; }, [](Index, int) {}, 2);
  CHECK(!has_begun);
}

TEST(an_exception_at_the_beginning_reaches_the_caller) {
  for (int threads : {1, 3}) {
    const std::string message = tests::message_of<std::out_of_range>([&] {
      parallel_for(
          1000, kLargeWork, [](int) { throw std::out_of_range("cannot begin"); },
          [](Index, int) { std::this_thread::sleep_for(std::chrono::microseconds(10)); }, threads);
    });
    CHECK(message == "cannot begin");
    CHECK(every_task_runs_once(50, threads));
  }
}

TEST(small_work_is_done_by_the_calling_thread_in_order) {
  const std::thread::id caller = std::this_thread::get_id();
  Index next = 0;
  parallel_for(
      100, 1000.0,
      [&](Index task, int worker) {
        CHECK(std::this_thread::get_id() == caller && worker == 0 && task == next);
        ++next;
      },
      4);
  CHECK(next == 100);
}

TEST(every_thread_is_worth_waking) {
  CHECK(planned_threads(100, 19e3, 64) == 1);
  CHECK(planned_threads(100, 50e3, 64) == 5);
  CHECK(planned_threads(100, 1e9, 64) == 64);
  CHECK(planned_threads(3, 1e9, 64) == 3);
  CHECK(planned_threads(0, 0, 64) == 1);
  CHECK(most_threads(100, 3.9e3, 64) == 1);
  CHECK(most_threads(100, 10e3, 64) == 5);
  CHECK(most_threads(3, 10e3, 64) == 3);
  CHECK(most_threads(0, 0, 64) == 1);
}

TEST(little_work_is_shared_where_one_loop_follows_the_other) {
  CHECK(soon([] { return workers_of_little_work() == std::set<int>{0, 1}; }));
}

// On a busy machine a worker may still be kept from falling asleep.
TEST(little_work_after_a_pause_is_done_by_the_calling_thread) {
  for (int i = 0; i < 20; ++i) {
    CHECK(soon([] {
      std::this_thread::sleep_for(milliseconds(1));
      return workers_of_little_work() == std::set<int>{0};
    }));
  }
}

TEST(a_nested_call_is_serial_and_sees_one_thread) {
  std::atomic<int> inner = 0;
  parallel_for(
      4, kLargeWork,
      [&](Index, int) {
        CHECK(num_threads() == 1);
        const std::thread::id outer = std::this_thread::get_id();
        parallel_for(
            8, kLargeWork,
            [&](Index, int worker) {
              CHECK(std::this_thread::get_id() == outer && worker == 0);
              ++inner;
            },
            4);
      },
      4);
  CHECK(inner == 32);
}

TEST(the_first_exception_of_a_task_reaches_the_caller_and_stops_the_rest) {
  for (int threads : {1, 2, 4}) {
    for (Index thrower : {0, 3}) {
      std::atomic<Index> runs = 0;
      const std::string message = tests::message_of<std::out_of_range>([&] {
        parallel_for(
            100000, kLargeWork,
            [&](Index task, int) {
              ++runs;
              if (task == thrower) throw std::out_of_range("task failed");
              std::this_thread::sleep_for(std::chrono::microseconds(10));
            },
            threads);
      });
      CHECK(message == "task failed");
      CHECK(runs < 100000);
      CHECK(every_task_runs_once(50, threads));
    }
  }
}

TEST(every_worker_treats_denormals_as_the_caller_does) {
  const auto survivors = [] {
    std::atomic<int> count = 0;
    parallel_for(
        60, kLargeWork,
        [&](Index, int) {
          volatile float denormal = std::numeric_limits<float>::denorm_min();
          if (denormal * 1.0f != 0.0f) ++count;
          std::this_thread::sleep_for(std::chrono::microseconds(100));
        },
        3);
    return count.load();
  };
  CHECK(survivors() == 60);
  {
    const FlushDenormals flushed;
    CHECK(survivors() == 0);
  }
  CHECK(survivors() == 60);
}

TEST(eight_threads_may_call_at_once) {
  std::vector<std::thread> callers;
  std::atomic<bool> ok = true;
  for (int t = 0; t < 8; ++t) {
    callers.emplace_back([&ok] {
      for (int i = 0; i < 200; ++i) ok = every_task_runs_once(7, 3) && ok;
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(ok);
}

TEST(an_interrupt_stops_the_tasks_and_reaches_the_caller) {
  struct Interrupted : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  static std::thread::id asked_from;
  set_interrupt_check([] {
    asked_from = std::this_thread::get_id();
    throw Interrupted("stop");
  });
  for (int threads : {1, 3}) {
    std::atomic<Index> runs = 0;
    asked_from = {};
    tests::message_of<Interrupted>([&] {
      parallel_for(
          10000, kLargeWork,
          [&](Index, int) {
            ++runs;
            std::this_thread::sleep_for(milliseconds(1));
          },
          threads);
    });
    CHECK(asked_from == std::this_thread::get_id());
    CHECK(runs < 10000);
  }
  set_interrupt_check(nullptr);
}

TEST(the_interrupt_check_may_itself_call_parallel_for) {
  static std::atomic<int> inner = 0;
  set_interrupt_check([] { parallel_for(3, kLargeWork, [](Index, int) { ++inner; }, 2); });
  for (int i = 0; i < 100 && inner == 0;
       ++i) {  // on a busy machine a worker may do all before the caller asks
    parallel_for(40, kLargeWork, [](Index, int) { std::this_thread::sleep_for(milliseconds(1)); }, 2);
  }
  set_interrupt_check(nullptr);
  CHECK(inner >= 3);
}

TEST(an_override_holds_for_its_own_thread_only) {
  set_num_threads(5);
  const std::optional<int> previous = override_num_threads(3);
  CHECK(num_threads() == 3);
  int elsewhere = 0;
  std::thread([&] { elsewhere = num_threads(); }).join();
  CHECK(elsewhere == 5);
  CHECK(override_num_threads(previous) == 3);
  CHECK(num_threads() == 5);
}

TEST(the_number_of_threads_must_be_positive_and_sane) {
  for (int count : {0, -1, kMaxThreads + 1}) {
    const std::string message = tests::message_of<std::invalid_argument>([&] { set_num_threads(count); });
    CHECK(message == "the number of threads must be from 1 to 256, got " + std::to_string(count));
  }
}

}  // namespace blasformer
