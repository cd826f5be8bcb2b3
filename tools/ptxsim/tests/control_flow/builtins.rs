//! `vprintf` and `__assertfail`.

use crate::harness::{load, only, run_with, shape, told};
use ptxsim::check::Kind;
use ptxsim::exec::launch::LaunchConfig;

const DECLARED: &str = "
.extern .func (.param .b32 func_retval0) vprintf(.param .b64 vprintf_param_0, .param .b64 vprintf_param_1);
.extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
.extern .func (.param .b64 func_retval0) malloc(.param .b64 malloc_param_0);
.extern .func free(.param .b64 free_param_0);
";

/// A string as NVRTC declares it.
fn string(name: &str, text: &str) -> String {
    let bytes: Vec<String> = text.bytes().chain([0]).map(|b| b.to_string()).collect();
    format!(".global .align 1 .b8 {name}[{}] = {{{}}};\n", bytes.len(), bytes.join(", "))
}

/// Calls `vprintf` with the buffer at `%rd21`.
const PRINT: &str = "
    {
    .param .b64 p0;
    st.param.b64 [p0], %rd20;
    .param .b64 p1;
    st.param.b64 [p1], %rd21;
    .param .b32 result;
    call.uni (result), vprintf, (p0, p1);
    ld.param.b32 %r30, [result];
    }";

#[test]
fn values_come_from_the_buffer_at_their_alignment() {
    let declarations =
        format!("{DECLARED}{}{}", string("text", "%d of %u: %5.2f %s %c %lld %x%%\n"), string("word", "abc"));
    let body = format!(
        "
    .local .align 16 .b8 buffer[48];
    mov.u64 %rd10, buffer;
    cvta.local.u64 %rd21, %rd10;
    st.local.v2.u32 [%rd10], {{%r2, %r4}};
    cvt.rn.f64.u32 %rd11, %r2;
    st.local.u64 [%rd10+8], %rd11;
    mov.u64 %rd12, word;
    cvta.global.u64 %rd12, %rd12;
    st.local.u64 [%rd10+16], %rd12;
    mov.u32 %r10, 120;
    st.local.u32 [%rd10+24], %r10;
    cvt.u64.u32 %rd13, %r2;
    shl.b64 %rd13, %rd13, 40;
    st.local.u64 [%rd10+32], %rd13;
    st.local.u32 [%rd10+40], %r1;
    mov.u64 %rd14, text;
    cvta.global.u64 %rd20, %rd14;
    setp.lt.u32 %p1, %r2, 2;
    @!%p1 bra $end;
    {PRINT}
    give %r30;
$end:
    ret;"
    )
    .replace("cvt.rn.f64.u32 %rd11, %r2", "cvt.rn.f64.u32 %fd11, %r2")
    .replace("[%rd10+8], %rd11", "[%rd10+8], %fd11");
    let body =
        format!(".reg .f64 %fd<16>;\n{}", body.replace("st.local.u64 [%rd10+8]", "st.local.f64 [%rd10+8]"));
    let (report, out) = run_with(&declarations, &body, &shape(2, 64), &[]);
    assert!(report.clean(), "{}", told(&report));
    let line =
        |t: u64, block: u64| format!("{t} of 64: {:5.2} abc x {} {:x}%\n", t as f64, t << 40, 64 * block + t);
    assert_eq!(report.printf, [line(0, 0), line(1, 0), line(0, 1), line(1, 1)].concat());
    assert_eq!((out[0], out[1], out[2]), (7, 7, 0), "the result is the number of arguments");
}

#[test]
fn output_is_in_the_order_of_blocks_and_warps() {
    let declarations = format!("{DECLARED}{}", string("text", "hello\n"));
    let body = format!(
        "
    mov.u64 %rd20, text;
    cvta.global.u64 %rd20, %rd20;
    mov.u64 %rd21, 0;
    and.b32 %r10, %r2, 31;
    setp.ne.u32 %p1, %r10, 0;
    @%p1 bra $end;
    {PRINT}
$end:
    ret;"
    );
    for host_threads in [1, 3] {
        let config = LaunchConfig { host_threads, ..shape(20, 96) };
        let (report, _) = run_with(&declarations, &body, &config, &[]);
        assert_eq!(report.printf, "hello\n".repeat(60));
    }
}

#[test]
fn a_format_that_is_nowhere_is_a_fault() {
    let body = format!("mov.u64 %rd20, 64; mov.u64 %rd21, 0; {PRINT} ret;");
    let (report, _) = run_with(DECLARED, &body, &shape(1, 1), &[]);
    let text = only(&report, Kind::OutOfBounds);
    assert!(text.contains("the format of printf at 0x40"), "{text}");
}

#[test]
fn a_failed_assertion_tells_its_place() {
    let strings = [("what", "x > 0"), ("file", "a.cu"), ("function", "void k(int)")];
    let strings: String = strings.map(|(name, text)| string(name, text)).concat();
    let body = "
    setp.ne.u32 %p1, %r1, 37;
    @%p1 bra $end;
    mov.u64 %rd10, what;
    mov.u64 %rd11, file;
    mov.u64 %rd12, function;
    {
    .param .b64 p0;
    st.param.b64 [p0], %rd10;
    .param .b64 p1;
    st.param.b64 [p1], %rd11;
    .param .b32 p2;
    st.param.b32 [p2], 12;
    .param .b64 p3;
    st.param.b64 [p3], %rd12;
    .param .b64 p4;
    st.param.b64 [p4], 1;
    call.uni __assertfail, (p0, p1, p2, p3, p4);
    }
$end:
    ret;";
    let (report, _) = run_with(&format!("{DECLARED}{strings}"), body, &shape(1, 64), &[]);
    only(&report, Kind::Trap);
    let fault = report.faulted().expect("a fault");
    assert_eq!(fault.message, "assertion `x > 0` failed at a.cu:12 in void k(int)");
    assert_eq!((fault.who.warp, fault.who.lane), (1, 5));
}

#[test]
fn the_device_heap_is_refused_when_the_module_is_loaded() {
    let body = "
    {
    .param .b64 p0;
    st.param.b64 [p0], 16;
    .param .b64 result;
    call.uni (result), malloc, (p0);
    ld.param.b64 %rd10, [result];
    }
    ret;";
    let error = load(DECLARED, body).expect_err("no heap").to_string();
    assert!(error.contains("malloc on the device heap (also new, delete) is not supported"), "{error}");
}
