/* NVIDIA's management library without a card, for tests: two cards, or what FAKE_NVML says ("none").
 * Card 0 draws 40 W and holds 2 GiB, 1 GiB of them for process FAKE_NVML_PROCESS; card 1 does not tell its power.
 */
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu, compute; } Process;
enum { NOT_SUPPORTED = 3 };

int nvmlInit_v2(void) { const char *said = getenv("FAKE_NVML"); return said && !strcmp(said, "none") ? 9 : 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **card) { *card = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetName(void *card, char *name, unsigned int length) { strncpy(name, "NVIDIA Fake", length); return 0; }
int nvmlDeviceGetPowerUsage(void *card, unsigned int *mw) { *mw = 40000; return (long)card == 1 ? 0 : NOT_SUPPORTED; }
int nvmlDeviceGetTemperature(void *card, int sensor, unsigned int *c) { *c = 50 + (long)card; return sensor; }
int nvmlDeviceGetMemoryInfo(void *card, Memory *memory) {
    memory->total = 8ull << 30; memory->used = (long)card == 1 ? 2ull << 30 : 0; memory->free = memory->total - memory->used;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned int *count, Process *found) {
    const char *process = getenv("FAKE_NVML_PROCESS"), *used = getenv("FAKE_NVML_USED");
    if ((long)card != 1 || !process) { *count = 0; return 0; }
    *count = 1;
    found[0].pid = (unsigned int)atoi(process);
    found[0].used = used ? strtoull(used, 0, 10) : 1ull << 30;
    return 0;
}
