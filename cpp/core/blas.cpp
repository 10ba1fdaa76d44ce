#include "core/blas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <thread>

#include "core/blas_chunks.h"
#include "core/require.h"

namespace blasformer::blas {

namespace {

// The values of CBLAS_ORDER and CBLAS_TRANSPOSE.
constexpr int kRowMajor = 101;
constexpr int kNoTranspose = 111;
constexpr int kTranspose = 112;

template <class T>
using CblasGemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k, T alpha,
                           const T* a, int lda, const T* b, int ldb, T beta, T* c, int ldc);

// OpenBLAS ends the process when it gets no memory. Throws std::bad_alloc before that if the process has a
// limit on its address space and less than this is left of it. (Without such a limit, reserving addresses
// practically never fails.)
void require_address_space(std::size_t bytes) {
  rlimit limit;
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  void* const probe = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (probe == MAP_FAILED) throw std::bad_alloc();
  ::munmap(probe, bytes);
}

// What every call that runs at the same time as others needs for itself. OpenBLAS keeps these buffers, and
// reuses them. The builds of scipy-openblas32, whose names have a prefix, use 32 MiB; the usual size
// elsewhere is 128 MiB.
constexpr std::size_t kBufferBytes = std::size_t{sizeof(BLASFORMER_BLAS_PREFIX) > 1 ? 32 : 128} << 20;
constexpr std::size_t kLibraryBytes = std::size_t{64} << 20;

// Sets an environment variable while it lives. setenv of another thread waits; a C library that calls getenv
// in another thread at this moment is the known risk of setenv, which every os.environ[...] = ... of Python
// takes as well.
class TemporaryVariable {
 public:
  TemporaryVariable(const char* name, const char* value) : name_(name) {
    if (const char* previous = std::getenv(name)) previous_ = previous;
    ::setenv(name, value, 1);
  }
  ~TemporaryVariable() {
    if (previous_) {
      ::setenv(name_, previous_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }
  TemporaryVariable(const TemporaryVariable&) = delete;
  TemporaryVariable& operator=(const TemporaryVariable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> previous_;
};

std::string directory_of_this_module() {
  Dl_info info;
  const auto* inside = reinterpret_cast<const void*>(&directory_of_this_module);
  const std::string path = ::dladdr(inside, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

// OpenBLAS, loaded at first use and not at import: it starts its threads and takes its memory when it is
// loaded.
class Library {
 public:
  Library() {
    require_address_space(kLibraryBytes + kBufferBytes);
    load();
    find(sgemm, "cblas_sgemm");
    find(dgemm, "cblas_dgemm");
    find(get_config, "openblas_get_config");
    find(get_corename, "openblas_get_corename");
    find(get_num_threads, "openblas_get_num_threads");
    find(set_num_threads, "openblas_set_num_threads");
  }

  CblasGemm<float> sgemm = nullptr;
  CblasGemm<double> dgemm = nullptr;
  char* (*get_config)() = nullptr;
  char* (*get_corename)() = nullptr;
  int (*get_num_threads)() = nullptr;
  void (*set_num_threads)(int) = nullptr;
  const std::string& path() const { return path_; }

 private:
  // OpenBLAS reads its variables once, while it is being loaded.
  void load() {
    // Work is divided by our own pool. set_num_threads(1) alone would leave one sleeping thread per core
    // behind.
    const TemporaryVariable one_thread("OPENBLAS_NUM_THREADS", "1");
    path_ = directory_of_this_module() + "/_lib/" + BLASFORMER_BLAS_LIBRARY;
#ifdef BLASFORMER_BLAS_FALLBACK
    if (::access(path_.c_str(), R_OK) != 0) path_ = BLASFORMER_BLAS_FALLBACK;
#endif
    handle_ = ::dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr) fail<std::runtime_error>("OpenBLAS cannot be loaded: ", ::dlerror());
  }

  template <class Function>
  void find(Function& function, const char* name) {
    const std::string symbol = std::string(BLASFORMER_BLAS_PREFIX) + name;
    function = reinterpret_cast<Function>(::dlsym(handle_, symbol.c_str()));
    if (function == nullptr) fail<std::runtime_error>("OpenBLAS in ", path_, " has no function ", symbol);
  }

  std::string path_;
  void* handle_ = nullptr;
};

// One call into OpenBLAS.
class Call {
 public:
  explicit Call(const Library& openblas) {
    const int concurrent = ++running;
    if (exiting && std::this_thread::get_id() != exiting_thread) {
      --running;
      for (;;) ::pause();
    }
    try {
      require_address_space(static_cast<std::size_t>(concurrent) * kBufferBytes);
    } catch (...) {
      --running;
      throw;
    }
    // threadpoolctl sets it in every OpenBLAS it finds.
    if (openblas.get_num_threads() != 1) openblas.set_num_threads(1);
  }
  ~Call() { --running; }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // At exit the destructor of OpenBLAS takes memory and kernels away from threads that are still multiplying,
  // such as daemon threads of Python. So exit waits for those, and those that come later wait for the end of
  // the process.
  static void wait_at_exit() {
    std::atexit([] {
      exiting_thread = std::this_thread::get_id();
      exiting = true;
      const auto end = std::chrono::steady_clock::now() + kLongestWait;
      while (running > 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    });
    pthread_atfork(nullptr, nullptr,
                   [] { running = 0; });  // the calls of other threads are gone in the child
  }

 private:
  static constexpr auto kLongestWait = std::chrono::seconds(5);  // should a call itself have led to the exit
  static inline std::atomic<int> running{0};
  static inline std::atomic<bool> exiting{false};
  static inline std::thread::id exiting_thread;
};

const Library& library() {
  static const Library& loaded = *[] {
    const Library* made = new Library;  // never deleted: other threads may be using it at exit
    Call::wait_at_exit();
    return made;
  }();
  return loaded;
}

// c = beta * c; what c held is not read when beta is 0.
template <class T>
void scale(Index m, Index n, T beta, T* c, Index ldc) {
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) c[i * ldc + j] = beta == T(0) ? T(0) : beta * c[i * ldc + j];
  }
}

template <class T>
void gemm(CblasGemm<T> Library::* function, Transpose transpose_a, Transpose transpose_b, Index m, Index n,
          Index k, T alpha, const T* a, Index lda, const T* b, Index ldb, T beta, T* c, Index ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) return scale(m, n, beta, c, ldc);
  const Library& openblas = library();
  const Call call(openblas);
  const int order_a = transpose_a == Transpose::yes ? kTranspose : kNoTranspose;
  const int order_b = transpose_b == Transpose::yes ? kTranspose : kNoTranspose;
  for_each_chunk(std::numeric_limits<int>::max(), transpose_a, transpose_b, m, n, k, a, lda, b, ldb, beta, c,
                 ldc,
                 [&](Index rows, Index columns, Index depth, const T* a_part, Index lda_part, const T* b_part,
                     Index ldb_part, T beta_part, T* c_part, Index ldc_part) {
                   const auto narrow = [](Index x) { return static_cast<int>(x); };
                   (openblas.*function)(kRowMajor, order_a, order_b, narrow(rows), narrow(columns),
                                        narrow(depth), alpha, a_part, narrow(lda_part), b_part,
                                        narrow(ldb_part), beta_part, c_part, narrow(ldc_part));
                 });
}

}  // namespace

void gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, float alpha,
          const float* a, Index lda, const float* b, Index ldb, float beta, float* c, Index ldc) {
  gemm(&Library::sgemm, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, double alpha,
          const double* a, Index lda, const double* b, Index ldb, double beta, double* c, Index ldc) {
  gemm(&Library::dgemm, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

std::string config() { return library().get_config(); }
std::string core_name() { return library().get_corename(); }
std::string path() { return library().path(); }

}  // namespace blasformer::blas
