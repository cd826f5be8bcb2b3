//! Special registers, in blocks and grids of one to three dimensions.

use crate::harness::{each, run, shape};
use ptxsim::exec::launch::LaunchConfig;

/// Stores a special register under the linear number of the thread.
fn values(register: &str, grid: [u32; 3], block: [u32; 3]) -> Vec<u32> {
    let axes = |name: &str, at: u32| {
        ["x", "y", "z"]
            .map(|a| format!("mov.u32 %r{}, %{name}.{a};", at + "xyz".find(a).unwrap() as u32))
            .concat()
    };
    let body = format!(
        "{} {} {} {}
    mad.lo.u32 %r30, %r12, %r16, %r11;
    mad.lo.u32 %r30, %r30, %r15, %r10;
    mad.lo.u32 %r31, %r22, %r26, %r21;
    mad.lo.u32 %r31, %r31, %r25, %r20;
    mul.lo.u32 %r32, %r15, %r16;
    mul.lo.u32 %r32, %r32, %r17;
    mad.lo.u32 %r33, %r31, %r32, %r30;
    mul.wide.u32 %rd10, %r33, 4;
    add.u64 %rd2, %rd1, %rd10;
    mov.u32 %r40, {register};
    give %r40;
    ret;",
        axes("tid", 10),
        axes("ntid", 15),
        axes("ctaid", 20),
        axes("nctaid", 25),
    );
    run("", &body, &LaunchConfig { grid, block, ..shape(1, 1) })
}

#[test]
fn threads_and_blocks_count_x_first() {
    for (grid, block) in
        [([5, 1, 1], [70, 1, 1]), ([3, 2, 1], [10, 7, 1]), ([2, 3, 4], [3, 5, 7]), ([1, 1, 2], [1, 1, 64])]
    {
        let threads: u32 = block.iter().product();
        let blocks: u32 = grid.iter().product();
        let thread = |t: u32| t % threads;
        let number = |t: u32| t / threads;
        let check = |register: &str, want: &dyn Fn(u32) -> u32| {
            let want = each(threads * blocks, want);
            assert_eq!(values(register, grid, block), want, "{register} of {grid:?} {block:?}");
        };
        check("%tid.x", &|t| thread(t) % block[0]);
        check("%tid.y", &|t| thread(t) / block[0] % block[1]);
        check("%tid.z", &|t| thread(t) / block[0] / block[1]);
        check("%ctaid.x", &|t| number(t) % grid[0]);
        check("%ctaid.y", &|t| number(t) / grid[0] % grid[1]);
        check("%ctaid.z", &|t| number(t) / grid[0] / grid[1]);
        check("%ntid.y", &|_| block[1]);
        check("%nctaid.z", &|_| grid[2]);
        check("%laneid", &|t| thread(t) % 32);
        check("%warpid", &|t| thread(t) / 32);
        check("%nwarpid", &|_| threads.div_ceil(32));
        check("%lanemask_eq", &|t| 1 << (thread(t) % 32));
        check("%lanemask_lt", &|t| (1u64 << (thread(t) % 32)).wrapping_sub(1) as u32);
        check("%lanemask_le", &|t| (2u64 << (thread(t) % 32)).wrapping_sub(1) as u32);
        check("%lanemask_gt", &|t| !((2u64 << (thread(t) % 32)).wrapping_sub(1) as u32));
        check("%lanemask_ge", &|t| !((1u64 << (thread(t) % 32)).wrapping_sub(1) as u32));
        check("%smid", &|t| number(t) % 132);
    }
}

#[test]
fn sizes_of_shared_memory() {
    let body = "
    mov.u32 %r10, %total_smem_size;
    mov.u32 %r11, %dynamic_smem_size;
    mov.u32 %r12, box;
    st.shared.u32 [%r12], %r11;
    sub.u32 %r10, %r10, %r11;
    give %r10;
    ret;";
    let declarations = ".shared .align 4 .b8 box[96];";
    let config = LaunchConfig { dynamic_shared_bytes: 512, ..shape(1, 1) };
    assert_eq!(run(declarations, body, &config), [96]);
}
