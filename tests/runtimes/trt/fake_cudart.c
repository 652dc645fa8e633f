/* A CUDA runtime without a GPU, for tests: what runtimes/trt/cudart.py calls, with the real rules.
 *
 * Work on a stream is done when the stream is synchronized, and not before, so a missing wait is seen. Device
 * memory is other memory than the host's: mapped host memory has two addresses of the same pages, and a copy
 * from or to the wrong kind of memory is refused. What was not freed is counted.
 *
 *   FAKE_CUDART_GPU     "name,sm,multiprocessors,integrated,driver", more of them behind ";", or "none"
 *   CUDA_VISIBLE_DEVICES  numbers of those that are shown
 *   FAKE_CUDART_REFUSES   path of a copy of this library that the driver is too old for
 *   FAKE_CUDART_FAIL    "function:code" or "function:code:n", the n-th call (from 1) and all after it
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { DEVICE, PINNED, MAPPED };
enum { COPY, CALL, RECORD };
typedef struct { int kind; size_t size; char *host, *device; } Memory;
typedef void (*Callback)(int64_t);
typedef struct { int64_t when; int happened; } Event;
typedef struct { int kind; void *to; const void *from; size_t size; Callback call; int64_t argument; Event *event; } Work;
typedef struct { Work items[256]; int count; } List;
typedef struct { List queue, captured; int capturing, broken; } Stream;

static Memory memories[256];
static int live_streams, live_events, live_graphs, live_execs;
static int64_t now;

static int injected(const char *name) {
    static char seen[128];
    static int calls;
    char function[64] = "";
    int code = 0, from = 1;
    const char *fail = getenv("FAKE_CUDART_FAIL");
    if (!fail) { seen[0] = 0; return 0; }
    if (strncmp(seen, fail, sizeof seen - 1)) { strncpy(seen, fail, sizeof seen - 1); calls = 0; }
    sscanf(fail, "%63[^:]:%d:%d", function, &code, &from);
    if (strcmp(function, name)) return 0;
    return ++calls >= from ? code : 0;
}
#define ENTER int code = injected(__func__); if (code) return code

static __thread int current;
static int contexts; /* cudaSetDevice makes one */
static const char *device_text(int device) { /* of the shown ones, to its ";" */
    const char *given = getenv("FAKE_CUDART_GPU"), *shown = getenv("CUDA_VISIBLE_DEVICES");
    if (!given) given = "Fake Orin,87,8,1,12060";
    if (shown && *shown) {
        while (device-- && shown) if ((shown = strchr(shown, ','))) shown++;
        if (!shown) return 0;
        device = atoi(shown);
    }
    while (device-- > 0) { given = strchr(given, ';'); if (!given) return 0; given++; }
    return given;
}
static const char *gpu_of(int device, int field) {
    static char text[256];
    const char *given = device_text(device);
    snprintf(text, sizeof text, "%s", given ? given : "");
    if (strchr(text, ';')) *strchr(text, ';') = 0;
    char *start = text, *end;
    while (field--) { start = strchr(start, ','); if (!start) return "0"; start++; }
    if ((end = strchr(start, ','))) *end = 0;
    return start;
}
static const char *gpu(int field) { return gpu_of(0, field); }

static Memory *find(const void *pointer, size_t size, int device_side) {
    for (int i = 0; i < 256; i++) {
        const char *start = device_side ? memories[i].device : memories[i].host, *p = pointer;
        if (start && p >= start && p + size <= start + memories[i].size) return &memories[i];
    }
    return 0;
}
static Memory *vacant(void) {
    for (int i = 0; i < 256; i++) if (!memories[i].size) return &memories[i];
    abort();
}

/* For the tests themselves. */
int fake_live(void) {
    int count = live_streams + live_events + live_graphs + live_execs;
    for (int i = 0; i < 256; i++) count += memories[i].size != 0;
    return count;
}
int fake_is_device_memory(const void *pointer, size_t size) { return find(pointer, size, 1) != 0; }
static int enqueue(Stream *stream, Work work) {
    List *list = stream->capturing ? &stream->captured : &stream->queue;
    if (list->count == 256) return 1;
    list->items[list->count++] = work;
    return 0;
}
int fake_enqueue(Stream *stream, Callback call, int64_t argument) {
    return enqueue(stream, (Work){.kind = CALL, .call = call, .argument = argument});
}
int fake_contexts(void) { return contexts; }
int fake_current(void) { return current; }
int fake_is_mapped(const void *pointer) { Memory *m = find(pointer, 1, 1); return m && m->kind == MAPPED; }
int fake_is_capturing(Stream *stream) { return stream->capturing; }
void fake_break_capture(Stream *stream) { stream->broken = 1; }

const char *cudaGetErrorString(int code) {
    switch (code) {
    case 1: return "invalid argument";
    case 2: return "out of memory";
    case 35: return "CUDA driver version is insufficient for CUDA runtime version";
    case 100: return "no CUDA-capable device is detected";
    case 700: return "an illegal memory access was encountered";
    case 901: return "operation failed due to a previous error during capture";
    }
    return "unknown error";
}
int cudaGetLastError(void) { return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 12060; return 0; }
int cudaDriverGetVersion(int *version) { *version = strcmp(gpu(0), "none") ? atoi(gpu(4)) : 0; return 0; }
int cudaGetDeviceCount(int *count) {
    ENTER;
    if (!strcmp(gpu(0), "none")) return 35;
    if (atoi(gpu(4)) < 12060) return 35;
    Dl_info here;
    const char *refused = getenv("FAKE_CUDART_REFUSES");
    if (refused && dladdr(memories, &here) && !strcmp(refused, here.dli_fname)) return 35;
    for (*count = 0; *count < 8 && device_text(*count); ++*count);
    return 0;
}
int cudaSetDevice(int device) {
    ENTER;
    if (!device_text(device)) return 101;
    current = device;
    contexts++;
    return 0;
}
int cudaGetDeviceProperties(void *properties, int device) {
    ENTER;
    memset(properties, 0xee, 1024);
    snprintf(properties, 256, "%s", gpu_of(device, 0));
    return 0;
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER;
    switch (attribute) {
    case 16: *value = atoi(gpu_of(device, 2)); return 0;
    case 18: *value = atoi(gpu_of(device, 3)); return 0;
    case 19: *value = 1; return 0;
    case 75: *value = atoi(gpu_of(device, 1)) / 10; return 0;
    case 76: *value = atoi(gpu_of(device, 1)) % 10; return 0;
    }
    return 1;
}

int cudaMalloc(void **pointer, size_t size) {
    ENTER;
    Memory *memory = vacant();
    *memory = (Memory){.kind = DEVICE, .size = size, .device = malloc(size)};
    memset(memory->device, 0xff, size); /* NaN */
    *pointer = memory->device;
    return 0;
}
int cudaFree(void *pointer) {
    ENTER;
    Memory *memory = find(pointer, 1, 1);
    if (!memory || memory->kind != DEVICE || memory->device != pointer) return 1;
    free(memory->device);
    memset(memory, 0, sizeof *memory);
    return 0;
}
int cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    ENTER;
    Memory *memory = vacant();
    int file = memfd_create("fake", 0);
    if (file < 0 || ftruncate(file, size)) return 2;
    memory->kind = flags & 2 ? MAPPED : PINNED;
    memory->host = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory->kind == MAPPED) memory->device = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    memory->size = size;
    memset(memory->host, 0xff, size);
    *pointer = memory->host;
    return 0;
}
int cudaFreeHost(void *pointer) {
    ENTER;
    Memory *memory = find(pointer, 1, 0);
    if (!memory || memory->host != pointer) return 1;
    munmap(memory->host, memory->size);
    if (memory->device) munmap(memory->device, memory->size);
    memset(memory, 0, sizeof *memory);
    return 0;
}
int cudaHostGetDevicePointer(void **pointer, void *host, unsigned flags) {
    ENTER;
    Memory *memory = find(host, 1, 0);
    if (!memory || memory->kind != MAPPED) return 1;
    *pointer = memory->device;
    return 0;
}

int cudaStreamCreateWithFlags(Stream **stream, unsigned flags) {
    ENTER;
    *stream = calloc(1, sizeof **stream);
    live_streams++;
    return 0;
}
int cudaStreamDestroy(Stream *stream) { ENTER; free(stream); live_streams--; return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int direction, Stream *stream) {
    ENTER;
    if (!find(to, size, direction == 1) || !find(from, size, direction == 2)) return 1;
    return enqueue(stream, (Work){.kind = COPY, .to = to, .from = from, .size = size});
}
int cudaStreamSynchronize(Stream *stream) {
    ENTER;
    if (stream->capturing) { stream->broken = 1; return 900; }
    List queue = stream->queue;
    stream->queue.count = 0;
    for (int i = 0; i < queue.count; i++) {
        Work *work = &queue.items[i];
        now++;
        if (work->kind == COPY) memcpy(work->to, work->from, work->size);
        if (work->kind == CALL) { work->call(work->argument); now += work->argument; }
        if (work->kind == RECORD) { work->event->when = now; work->event->happened = 1; }
    }
    return 0;
}

int cudaEventCreate(Event **event) { ENTER; *event = calloc(1, sizeof **event); live_events++; return 0; }
int cudaEventDestroy(Event *event) { ENTER; free(event); live_events--; return 0; }
int cudaEventRecord(Event *event, Stream *stream) { ENTER; return enqueue(stream, (Work){.kind = RECORD, .event = event}); }
int cudaEventElapsedTime(float *ms, Event *start, Event *end) {
    ENTER;
    if (!start->happened || !end->happened) return 600;
    *ms = (float)(end->when - start->when);
    return 0;
}

int cudaStreamBeginCapture(Stream *stream, int mode) {
    ENTER;
    if (stream->capturing) return 1;
    stream->capturing = 1;
    stream->broken = 0;
    stream->captured.count = 0;
    return 0;
}
int cudaStreamEndCapture(Stream *stream, List **graph) {
    if (!stream->capturing) return 1;
    stream->capturing = 0;
    *graph = 0;
    if (stream->broken) return 901;
    ENTER;
    *graph = malloc(sizeof **graph);
    **graph = stream->captured;
    live_graphs++;
    return 0;
}
int cudaGraphInstantiateWithFlags(List **exec, List *graph, unsigned long long flags) {
    ENTER;
    *exec = malloc(sizeof **exec);
    **exec = *graph;
    live_execs++;
    return 0;
}
int cudaGraphDestroy(List *graph) { ENTER; free(graph); live_graphs--; return 0; }
int cudaGraphExecDestroy(List *exec) { ENTER; free(exec); live_execs--; return 0; }
int cudaGraphLaunch(List *exec, Stream *stream) {
    ENTER;
    for (int i = 0; i < exec->count; i++) if (enqueue(stream, exec->items[i])) return 1;
    return 0;
}
