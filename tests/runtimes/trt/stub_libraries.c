/* Stands in for libnvinfer, libnvonnxparser and libnvinfer_plugin, so that NVIDIA's own Python bindings load:
   the nine symbols they need. Creating a builder or a runtime does what the real libraries do where there is
   no driver: it logs a CUDA error through the bindings' logger and returns nothing. LOG_SLOT is the place of
   log(severity, text) among the logger's virtual functions: the first to TensorRT 10, the fifth in 11. */
#include <stddef.h>

typedef void (*log_function)(void *logger, int severity, const char *text);

static void *fail(void *logger) {
    log_function log = (*(log_function **)logger)[LOG_SLOT];
    log(logger, 1, "CUDA initialization failure with error: 35. Please check your CUDA installation.");
    return NULL;
}

void *createInferBuilder_INTERNAL(void *logger, int version) { return fail(logger); }
void *createInferRuntime_INTERNAL(void *logger, int version) { return fail(logger); }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return NULL; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return NULL; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return NULL; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void *logger, const char *name) { return 1; }
void *getPluginRegistry(void) { return NULL; }
void *getBuilderPluginRegistry(int capability) { return NULL; }
