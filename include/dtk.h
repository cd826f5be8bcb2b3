/*
 * dtk from C: DreamTeacher distillation steps and feature maps.
 *
 *     dtk_options options = DTK_OPTIONS_INIT;
 *     options.recipe = "quickstart";
 *     dtk_distiller *d = NULL;
 *     if (dtk_open(&options, &d) != DTK_OK) { puts(dtk_last_error()); return 1; }
 *     dtk_step(d, &images, &result);
 *     dtk_save_backbone(d, "backbone.safetensors");
 *     dtk_close(d);
 *
 * The library is libdtk_capi.so (cargo build --release -p dtk-capi). It prints nothing, keeps no state between handles and
 * never ends the process. Every function that can fail gives a dtk_status; dtk_last_error() says more.
 *
 * Threads: different handles are independent. A handle may go from one thread to another; two calls at a time on one handle
 * are refused with DTK_ERROR_USAGE. dtk_close must be the last.
 */
#ifndef DTK_H
#define DTK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a struct or a function below does; dtk_open refuses another one than the library's. */
#define DTK_ABI_VERSION 1u

/* The most levels of a student. */
#define DTK_MAX_LEVELS 8

/* How a call went. */
typedef int32_t dtk_status;
enum {
    DTK_OK = 0,
    DTK_ERROR_USAGE = 1,      /* a wrong argument, recipe, override; a null pointer */
    DTK_ERROR_SHAPE = 2,      /* sizes that do not fit together */
    DTK_ERROR_DEVICE = 3,     /* no such device, out of memory, a failed launch */
    DTK_ERROR_FILE = 4,       /* a file that cannot be read or written, or is not what it should be */
    DTK_ERROR_NUMERIC = 5,    /* a loss or gradient that is not finite; nothing was updated */
    DTK_ERROR_INTERNAL = 6    /* a defect of dtk; of the handle only dtk_close is allowed afterwards */
};

/* Element types. */
typedef int32_t dtk_dtype;
enum {
    DTK_U8 = 0,               /* 0 .. 255 */
    DTK_F32 = 1,
    DTK_BF16 = 2
};

/* Where an address points. */
typedef int32_t dtk_memory;
enum {
    DTK_HOST = 0,
    DTK_DEVICE = 1            /* memory of the handle's CUDA device */
};

/* Whose feature maps. */
typedef int32_t dtk_network;
enum {
    DTK_TEACHER = 0,          /* the raw maps of the recipe's taps, in their order */
    DTK_STUDENT = 1           /* the maps of the backbone as it is now, fine to coarse */
};

/* A teacher, a student, its optimiser. */
typedef struct dtk_distiller dtk_distiller;

/* How to open. Begin with DTK_OPTIONS_INIT. All pointers are read during dtk_open only. */
typedef struct dtk_options {
    uint32_t abi_version;          /* DTK_ABI_VERSION */
    const char *recipe;            /* a built-in name ("quickstart", "imagenet", ..) or the path of a TOML file */
    const char *const *overrides;  /* "key.path=value" each, as --set takes them; NULL if there are none */
    size_t override_count;
    const char *device;            /* "cpu", "cuda" or "cuda:N"; NULL means "cpu", or "cuda" where a context is given */
    void *cuda_context;            /* a CUcontext of the program's, or NULL for the device's primary context */
    void *cuda_stream;             /* the CUstream that all work goes to; given if and only if the context is */
    const char *cache_dir;         /* folder of compiled kernels; NULL for the usual one */
    uint64_t memory_limit_bytes;   /* the most device memory that is taken; 0 for no limit */
    uint64_t epoch_images;         /* images of an epoch; needed where the recipe counts in epochs, else 0 */
} dtk_options;

#define DTK_OPTIONS_INIT { DTK_ABI_VERSION, NULL, NULL, 0, NULL, NULL, NULL, NULL, 0, 0 }

/* A batch of RGB images [n, height, width, 3], densely packed. */
typedef struct dtk_images {
    const void *data;
    dtk_dtype dtype;               /* DTK_U8; on the CPU also DTK_F32 with values in -1 .. 1 */
    dtk_memory memory;             /* DTK_DEVICE needs a handle on a CUDA device, and a multiple of 16 as address. The images
                                      are read where they are, in the order of the handle's stream: what the program has
                                      enqueued there before is done by then; they must not go before that */
    uint64_t n;
    uint64_t height;
    uint64_t width;
    uint64_t first;                /* place of the first image in the set or the batch: the teacher's noise follows from it */
} dtk_images;

/* A batch of feature maps [n, height, width, channels]. */
typedef struct dtk_map {
    const void *data;              /* belongs to the handle; valid until the next call with it */
    dtk_dtype dtype;
    dtk_memory memory;             /* DTK_DEVICE on a CUDA device: nothing was copied, and the work that fills it is on the
                                      handle's stream, perhaps not done yet */
    uint64_t shape[4];
    uint64_t strides[4];           /* in elements */
    uint64_t pixels;               /* pixels of the image, along each side, to one of the map */
} dtk_map;

/* One level of a step, fine to coarse. */
typedef struct dtk_level {
    uint64_t pixels;               /* as in dtk_map */
    float mse;                     /* whitened MSE */
    float at;                      /* attention-transfer distance */
    float cosine;                  /* agreement with the whitened teacher: near 0 at the start, 1 in the limit */
} dtk_level;

/* A finished step. */
typedef struct dtk_step_result {
    uint64_t step;                 /* steps done, this one included */
    double lr;                     /* learning rate used */
    double grad_norm;              /* L2 norm of the gradient before clipping */
    float loss;
    uint32_t level_count;
    dtk_level levels[DTK_MAX_LEVELS];
} dtk_step_result;

/* The library's version, such as "0.1.0". */
const char *dtk_version(void);

/* The DTK_ABI_VERSION that the library was built with. */
uint32_t dtk_abi_version(void);

/* What the last call on this thread that failed had to say, in one or more lines: what went wrong, where, with which shapes,
 * what to do about it. Empty if none has failed. Valid until the next call on this thread. Never NULL. */
const char *dtk_last_error(void);

/* Reads the recipe, builds teacher, student and optimiser, loads what weights the recipe names. *out is NULL on failure. */
dtk_status dtk_open(const dtk_options *options, dtk_distiller **out);

/* Feature maps of some images. Writes up to `capacity` maps and in *count how many there are; with maps NULL and capacity 0
 * only counts. Too little room is DTK_ERROR_USAGE, with *count set. */
dtk_status dtk_features(dtk_distiller *distiller, dtk_network network, const dtk_images *images, dtk_map *maps,
                        size_t capacity, size_t *count);

/* One distillation step and update of the student, with the recipe's batch of images. Waits for it. After an error no
 * parameter has changed. */
dtk_status dtk_step(dtk_distiller *distiller, const dtk_images *images, dtk_step_result *result);

/* Writes the backbone as it is now, under timm's names, to a safetensors file: completely or not at all. */
dtk_status dtk_save_backbone(dtk_distiller *distiller, const char *path);

/* Ends the handle and all its pointers. Never touches the program's context and stream. NULL is allowed. */
void dtk_close(dtk_distiller *distiller);

#ifdef __cplusplus
}
#endif

#endif
