/* Sizes and offsets of the header's structs, for tests/c_programs.rs to compare with Rust's. */
#include <stdio.h>

#include "dtk.h"

#define SIZE(type) printf(#type " %d\n", (int)sizeof(type))
#define FIELD(type, field) printf(#type "." #field " %d\n", (int)offsetof(type, field))

int main(void) {
    printf("abi %u %u\n", DTK_ABI_VERSION, dtk_abi_version());
    printf("most levels %d\n", DTK_MAX_LEVELS);
    printf("codes %d %d %d %d %d %d %d, %d %d %d, %d %d, %d %d\n", DTK_OK, DTK_ERROR_USAGE, DTK_ERROR_SHAPE,
           DTK_ERROR_DEVICE, DTK_ERROR_FILE, DTK_ERROR_NUMERIC, DTK_ERROR_INTERNAL, DTK_U8, DTK_F32, DTK_BF16, DTK_HOST,
           DTK_DEVICE, DTK_TEACHER, DTK_STUDENT);
    SIZE(dtk_options);
    FIELD(dtk_options, recipe);
    FIELD(dtk_options, override_count);
    FIELD(dtk_options, cuda_context);
    FIELD(dtk_options, cuda_stream);
    FIELD(dtk_options, cache_dir);
    FIELD(dtk_options, epoch_images);
    SIZE(dtk_images);
    FIELD(dtk_images, memory);
    FIELD(dtk_images, n);
    FIELD(dtk_images, first);
    SIZE(dtk_map);
    FIELD(dtk_map, memory);
    FIELD(dtk_map, shape);
    FIELD(dtk_map, strides);
    FIELD(dtk_map, pixels);
    SIZE(dtk_level);
    FIELD(dtk_level, cosine);
    SIZE(dtk_step_result);
    FIELD(dtk_step_result, grad_norm);
    FIELD(dtk_step_result, level_count);
    FIELD(dtk_step_result, levels);
    return 0;
}
