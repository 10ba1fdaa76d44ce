/* What this machine's cores and memory can do at most: prints GF/s of multiply-adds in float32 and float64 held in
   registers, and GB/s of reading memory, with the given number of threads at once. The best of several bursts. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

enum { chains = 12, most_threads = 256, bursts = 8 };
static const long steps = 2000000;
static const size_t bytes_in_all = (size_t)512 << 20;

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(VECTOR_BYTES)));

static pthread_barrier_t barrier;
static volatile double one = 1.0;
static double sink[most_threads];
static char* memory;
static int threads;

/* Chains of distinct values, so that the compiler cannot make one of them. */
#define MULTIPLY_ADDS(Name, Vector, Element)                                  \
    static double Name(void) {                                                \
        Vector sums[chains];                                                  \
        const Vector factor = (Vector){0} + (Element)(one * 0.999999);        \
        const Vector term = (Vector){0} + (Element)(one * 0.000001);          \
        for (int i = 0; i < chains; ++i)                                      \
            sums[i] = (Vector){0} + (Element)(one * (0.5 + 0.01 * i));        \
        for (long step = 0; step < steps; ++step)                             \
            _Pragma("GCC unroll 12") for (int i = 0; i < chains; ++i)         \
                sums[i] = sums[i] * factor + term;                            \
        for (int i = 1; i < chains; ++i)                                      \
            sums[0] += sums[i];                                               \
        return (double)sums[0][0];                                            \
    }

MULTIPLY_ADDS(multiply_add_floats, Floats, float)
MULTIPLY_ADDS(multiply_add_doubles, Doubles, double)

static double read_part(int thread) {
    const size_t bytes = bytes_in_all / (size_t)threads / (8 * VECTOR_BYTES) * (8 * VECTOR_BYTES);
    const Floats* const part = (const Floats*)(memory + (size_t)thread * bytes);
    Floats sums[8] = {{0}};
    for (size_t i = 0; i < bytes / VECTOR_BYTES; i += 8)
        _Pragma("GCC unroll 8") for (int j = 0; j < 8; ++j)
            sums[j] += part[i + (size_t)j];
    for (int j = 1; j < 8; ++j)
        sums[0] += sums[j];
    return (double)sums[0][0];
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Seconds of the best burst of each kind; thread 0 keeps the time, from when all start to when all are done. */
static double seconds[3] = {1e30, 1e30, 1e30};

static void* run(void* argument) {
    const int thread = (int)(intptr_t)argument;
    const size_t bytes = bytes_in_all / (size_t)threads;
    memset(memory + (size_t)thread * bytes, 0, bytes);
    for (int burst = 0; burst < bursts; ++burst) {
        for (int kind = 0; kind < 3; ++kind) {
            pthread_barrier_wait(&barrier);
            const double start = now();
            sink[thread] += kind == 0 ? multiply_add_floats() : kind == 1 ? multiply_add_doubles() : read_part(thread);
            pthread_barrier_wait(&barrier);
            const double taken = now() - start;
            if (thread == 0 && taken < seconds[kind]) seconds[kind] = taken;
        }
    }
    return NULL;
}

int main(int count, char** arguments) {
    threads = count > 1 ? atoi(arguments[1]) : 1;
    if (threads < 1 || threads > most_threads) return 1;
    memory = aligned_alloc(4096, bytes_in_all);
    if (memory == NULL) return 1;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    pthread_t others[most_threads];
    for (intptr_t i = 1; i < threads; ++i)
        if (pthread_create(&others[i], NULL, run, (void*)i) != 0) return 1;
    run((void*)(intptr_t)0);
    for (int i = 1; i < threads; ++i) pthread_join(others[i], NULL);
    const double operations = 2.0 * chains * (double)steps * threads * 1e-9;
    printf("{\"float32\": %.4g, \"float64\": %.4g, \"bandwidth\": %.4g}\n",
           operations * (VECTOR_BYTES / 4) / seconds[0],
           operations * (VECTOR_BYTES / 8) / seconds[1],
           1e-9 * (double)bytes_in_all / seconds[2]);
    return sink[0] == 0.123;
}
