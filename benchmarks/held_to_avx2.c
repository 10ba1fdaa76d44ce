/* Preloaded into a Python whose ONNX Runtime executes an undefined instruction (0F 0B) wherever it had CPUID
   (held_to_avx2.py): answers in its place, without AVX-512 and AMX. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

static const unsigned extended_features = 7;
/* AVX-512 and AMX in the registers of that leaf: Intel SDM volume 2A, CPUID. */
static const unsigned wide_ebx =
    1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31;
static const unsigned wide_ecx = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
static const unsigned wide_edx = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;
static const unsigned wide_eax_of_subleaf_1 = 1u << 5;

static void answer(int signal_number, siginfo_t* information, void* context) {
    (void)information;
    greg_t* const registers = ((ucontext_t*)context)->uc_mcontext.gregs;
    const unsigned char* const instruction = (const unsigned char*)registers[REG_RIP];
    if (instruction[0] != 0x0f || instruction[1] != 0x0b) {
        signal(signal_number, SIG_DFL);
        return;
    }
    const unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX];
    unsigned eax, ebx, ecx, edx;
    __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
    if (leaf == extended_features && subleaf == 0) {
        ebx &= ~wide_ebx;
        ecx &= ~wide_ecx;
        edx &= ~wide_edx;
    }
    if (leaf == extended_features && subleaf == 1) eax &= ~wide_eax_of_subleaf_1;
    registers[REG_RAX] = eax;
    registers[REG_RBX] = ebx;
    registers[REG_RCX] = ecx;
    registers[REG_RDX] = edx;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {0};
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, NULL);
}
