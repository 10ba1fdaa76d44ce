// What happens to a process as a whole: fork, exit, and the end of its memory or threads. Each test runs in a
// child process. Not with sanitizers: ThreadSanitizer has no threads after a fork, AddressSanitizer no limit
// on address space.

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "check.h"
#include "core/blas.h"
#include "core/interrupt.h"
#include "core/thread_pool.h"

#if defined(__has_feature)
#define HAS_FEATURE(feature) __has_feature(feature)
#else
#define HAS_FEATURE(feature) 0
#endif
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__) && !HAS_FEATURE(thread_sanitizer) && \
    !HAS_FEATURE(address_sanitizer)

namespace blasformer {

namespace {

constexpr unsigned kTimeLimit = 120;  // seconds: who takes so long hangs
constexpr double kLargeWork = 1e9;

bool ends_well(pid_t child) {
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

template <class Function>
bool succeeds_in_child(Function function) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(kTimeLimit);
    try {
      _exit(function() ? 0 : 1);
    } catch (...) {
      _exit(2);
    }
  }
  return ends_well(child);
}

std::size_t number_in_status(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::stoul(line.substr(name.size() + 1));
  }
  return 0;
}

void limit_address_space_to_what_is_used_and(std::size_t mebibytes) {
  const rlim_t bytes = (number_in_status("VmSize") << 10) + (mebibytes << 20);
  const rlimit limit{bytes, bytes};
  setrlimit(RLIMIT_AS, &limit);
}

bool product_is_right() {
  constexpr Index n = 130;
  const std::vector<float> ones(n * n, 1.0f);
  std::vector<float> c(n * n);
  blas::gemm(blas::Transpose::no, blas::Transpose::no, n, n, n, 1.0f, ones.data(), n, ones.data(), n, 0.0f,
             c.data(), n);
  return c == std::vector<float>(n * n, static_cast<float>(n));
}

bool may_create_threads() {
  try {
    std::thread([] {}).join();
    return true;
  } catch (const std::system_error&) {
    return false;
  }
}

Index sum_of_tasks(int threads) {
  std::atomic<Index> sum = 0;
  parallel_for(100, kLargeWork, [&](Index task, int) { sum += task; }, threads);
  return sum;
}

}  // namespace

TEST(a_forked_child_computes_with_threads_of_its_own) {
  CHECK(sum_of_tasks(3) == 4950);
  CHECK(product_is_right());
  CHECK(succeeds_in_child([] { return sum_of_tasks(3) == 4950 && product_is_right(); }));
  CHECK(sum_of_tasks(3) == 4950);
}

TEST(a_child_forked_while_another_thread_computes_does_not_hang) {
  std::atomic<bool> stop = false;
  std::thread busy([&] {
    while (!stop) {
      sum_of_tasks(2);
      product_is_right();
    }
  });
  bool ok = true;
  for (int i = 0; i < 50; ++i) {
    ok = ok && succeeds_in_child([] { return sum_of_tasks(3) == 4950 && product_is_right(); });
  }
  stop = true;
  busy.join();
  CHECK(ok);
}

TEST(a_child_forked_by_a_signal_handler_is_told_that_the_interrupted_call_is_lost_and_makes_others) {
  static std::atomic<pid_t> child;
  static std::atomic<bool> worker_is_busy;
  child = -1;
  set_interrupt_check([] {
    if (child == -1 && worker_is_busy && (child = fork()) == 0) alarm(kTimeLimit);
  });
  const auto call = [] {
    std::atomic<Index> done = 0;
    parallel_for(
        100, kLargeWork,
        [&](Index, int worker) {
          worker_is_busy = worker_is_busy || worker == 1;
          // The worker is in the middle of a task until the process has been forked.
          for (int i = 0; i < (worker == 1 ? 500 : 1) && child == -1; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
          }
          ++done;
        },
        2);
    return done == 100;
  };
  bool complete = false;
  std::string message;
  for (int i = 0; i < 100 && child == -1; ++i) {  // a busy machine may let the worker come too late
    worker_is_busy = false;
    try {
      complete = call();
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
  }
  set_interrupt_check(nullptr);
  if (child == 0)
    _exit(message.find("this process was forked in the middle of a call") == 0 && call() ? 0 : 1);
  CHECK(complete && child > 0);
  CHECK(ends_well(child));
}

TEST(a_process_that_may_not_create_threads_computes_without_them) {
  CHECK(succeeds_in_child([] {
    const rlimit limit{1, 1};
    setrlimit(RLIMIT_NPROC, &limit);
    if (getuid() == 0 && setuid(65534) != 0) return true;
    if (may_create_threads()) return true;  // the limit does not bind this user here
    return sum_of_tasks(4) == 4950 && sum_of_tasks(4) == 4950 && number_in_status("Threads") == 1;
  }));
}

TEST(a_product_without_memory_for_its_buffers_throws_and_the_process_goes_on) {
  CHECK(succeeds_in_child([] {
    blas::config();
    limit_address_space_to_what_is_used_and(20);
    try {
      product_is_right();
      return false;
    } catch (const std::bad_alloc&) {
      return sum_of_tasks(1) == 4950;
    }
  }));
}

TEST(a_product_with_memory_for_its_buffers_is_computed_under_a_limit) {
  CHECK(succeeds_in_child([] {
    limit_address_space_to_what_is_used_and(200);
    return product_is_right();
  }));
}

TEST(exit_while_threads_multiply_neither_crashes_nor_hangs) {
  for (int milliseconds = 1; milliseconds <= 30; ++milliseconds) {
    CHECK(succeeds_in_child([milliseconds] {
      for (int i = 0; i < 3; ++i) {
        std::thread([] {
          for (;;) parallel_for(8, kLargeWork, [](Index, int) { product_is_right(); }, 3);
        }).detach();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
      std::exit(0);
      return false;
    }));
  }
}

}  // namespace blasformer

#endif
