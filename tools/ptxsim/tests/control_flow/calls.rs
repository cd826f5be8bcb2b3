//! Device functions.

use crate::harness::{each, load, run, run_with, shape};
use ptxsim::check::Kind;

/// `twice(x) = 2 x`, `odd(x) = twice(x) + 1`, `sum(n) = 1 + .. + n` by a loop, `wide(x)` gives two values.
const FUNCTIONS: &str = "
.func (.param .b32 result) twice(.param .b32 x)
{
    .reg .b32 %r<4>;
    ld.param.u32 %r1, [x];
    add.u32 %r2, %r1, %r1;
    st.param.b32 [result], %r2;
    ret;
}
.func (.param .b32 result) odd(.param .b32 x)
{
    .reg .b32 %r<4>;
    ld.param.u32 %r1, [x];
    {
    .param .b32 a;
    st.param.b32 [a], %r1;
    .param .b32 b;
    call.uni (b), twice, (a);
    ld.param.b32 %r2, [b];
    }
    add.u32 %r3, %r2, 1;
    st.param.b32 [result], %r3;
    ret;
}
.func (.param .b32 result) sum(.param .b32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<4>;
    ld.param.u32 %r1, [n];
    mov.u32 %r2, 0;
$again:
    setp.eq.u32 %p1, %r1, 0;
    @%p1 bra $end;
    add.u32 %r2, %r2, %r1;
    sub.u32 %r1, %r1, 1;
    bra $again;
$end:
    st.param.b32 [result], %r2;
    ret;
}
.func (.param .align 8 .b8 result[16]) wide(.param .b64 x, .param .b32 y)
{
    .reg .b64 %rd<4>;
    .reg .b32 %r<4>;
    ld.param.u64 %rd1, [x];
    ld.param.u32 %r1, [y];
    cvt.u64.u32 %rd2, %r1;
    add.u64 %rd3, %rd1, %rd2;
    st.param.b64 [result], %rd3;
    st.param.b64 [result+8], %rd2;
    ret;
}
.func nothing()
{
    ret;
}
";

/// Calls `name(%r10)` into `%r11`.
fn call(name: &str) -> String {
    format!(
        "
    {{
    .param .b32 a;
    st.param.b32 [a], %r10;
    .param .b32 b;
    call (b), {name}, (a);
    ld.param.b32 %r11, [b];
    }}"
    )
}

#[test]
fn a_function_that_calls_a_function() {
    let body = format!("mov.u32 %r10, %r1; {} give %r11; ret;", call("odd"));
    assert_eq!(run(FUNCTIONS, &body, &shape(2, 48)), each(96, |t| 2 * t + 1));
}

#[test]
fn calls_from_two_sides_of_a_branch_and_behind_it() {
    let body = format!(
        "
    mov.u32 %r10, %r2;
    and.b32 %r12, %r2, 1;
    setp.eq.u32 %p1, %r12, 0;
    @%p1 bra $even;
    {odd}
    bra $join;
$even:
    {sum}
$join:
    mov.u32 %r10, %r11;
    {twice}
    activemask.b32 %r13;
    setp.ne.u32 %p2, %r13, 0xffffffff;
    @%p2 mov.u32 %r11, 0;
    give %r11;
    ret;",
        odd = call("odd"),
        sum = call("sum"),
        twice = call("twice"),
    );
    let want = each(32, |t| 2 * if t % 2 == 0 { t * (t + 1) / 2 } else { 2 * t + 1 });
    assert_eq!(run(FUNCTIONS, &body, &shape(1, 32)), want);
}

#[test]
fn a_call_by_some_lanes_only() {
    let body = "
    mov.u32 %r11, 5;
    mov.u32 %r10, %r2;
    setp.lt.u32 %p1, %r2, 7;
    {
    .param .b32 a;
    st.param.b32 [a], %r10;
    .param .b32 b;
    @%p1 call (b), twice, (a);
    @%p1 ld.param.b32 %r11, [b];
    }
    call nothing;
    give %r11;
    ret;";
    assert_eq!(run(FUNCTIONS, body, &shape(1, 32)), each(32, |t| if t < 7 { 2 * t } else { 5 }));
}

#[test]
fn structures_by_value() {
    let body = "
    mov.u64 %rd10, 0x100000000;
    {
    .param .b64 a;
    st.param.b64 [a], %rd10;
    .param .b32 c;
    st.param.b32 [c], %r2;
    .param .align 8 .b8 b[16];
    call (b), wide, (a, c);
    ld.param.b64 %rd11, [b];
    ld.param.b64 %rd12, [b+8];
    }
    shr.u64 %rd13, %rd11, 30;
    add.u64 %rd13, %rd13, %rd11;
    add.u64 %rd13, %rd13, %rd12;
    cvt.u32.u64 %r10, %rd13;
    give %r10;
    ret;";
    assert_eq!(run(FUNCTIONS, body, &shape(1, 32)), each(32, |t| 4 + 2 * t));
}

const TABLE: &str = ".global .align 8 .u64 table[3] = {twice, odd, sum};";

#[test]
fn calls_through_a_table() {
    let body = "
    rem.u32 %r10, %r2, 3;
    mul.wide.u32 %rd10, %r10, 8;
    mov.u64 %rd11, table;
    add.u64 %rd11, %rd11, %rd10;
    ld.global.u64 %rd12, [%rd11];
    {
    .param .b32 a;
    st.param.b32 [a], %r2;
    .param .b32 b;
prototype: .callprototype (.param .b32 _) _ (.param .b32 _);
    call (b), %rd12, (a), prototype;
    ld.param.b32 %r11, [b];
    }
    activemask.b32 %r13;
    setp.ne.u32 %p2, %r13, 0xffffffff;
    @%p2 mov.u32 %r11, 0;
    give %r11;
    ret;";
    let declarations = format!("{FUNCTIONS}{TABLE}");
    let want = each(32, |t| match t % 3 {
        0 => 2 * t,
        1 => 2 * t + 1,
        _ => t * (t + 1) / 2,
    });
    assert_eq!(run(&declarations, body, &shape(1, 32)), want);
    // An address that is no function's.
    let wrong = body.replace("ld.global.u64 %rd12, [%rd11]", "add.u64 %rd12, %rd1, 0");
    let (report, _) = run_with(&declarations, &wrong, &shape(1, 32), &[]);
    let fault = report.faulted().expect("a fault");
    assert_eq!(fault.kind, Kind::OutOfBounds);
    assert!(fault.message.contains("no function"), "{fault}");
}

#[test]
fn a_function_that_calls_through_a_register() {
    // `apply(f, x)`: only functions whose address is taken can be meant, so this is no recursion.
    let apply = "
.func (.param .b32 result) apply(.param .b64 f, .param .b32 x)
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [f];
    ld.param.u32 %r1, [x];
    {
    .param .b32 a;
    st.param.b32 [a], %r1;
    .param .b32 b;
prototype: .callprototype (.param .b32 _) _ (.param .b32 _);
    call (b), %rd1, (a), prototype;
    ld.param.b32 %r2, [b];
    }
    st.param.b32 [result], %r2;
    ret;
}";
    let body = "
    mov.u64 %rd10, odd;
    mov.u64 %rd11, twice;
    setp.lt.u32 %p1, %r2, 9;
    selp.b64 %rd12, %rd10, %rd11, %p1;
    {
    .param .b64 f;
    st.param.b64 [f], %rd12;
    .param .b32 a;
    st.param.b32 [a], %r2;
    .param .b32 b;
    call (b), apply, (f, a);
    ld.param.b32 %r11, [b];
    }
    give %r11;
    ret;";
    let want = each(32, |t| 2 * t + u32::from(t < 9));
    assert_eq!(run(&format!("{FUNCTIONS}{apply}"), body, &shape(1, 32)), want);
}

#[test]
fn recursion_is_refused() {
    let f = "
.func f()
{
    call f;
    ret;
}";
    let error = load(f, "call f; ret;").expect_err("recursive").to_string();
    assert!(error.contains("recursive calls are not supported"), "{error}");
}

#[test]
fn exit_in_a_function_ends_the_thread() {
    let f = "
.func leave(.param .b32 x)
{
    .reg .pred %p<2>;
    .reg .b32 %r<2>;
    ld.param.u32 %r1, [x];
    setp.ge.u32 %p1, %r1, 20;
    @%p1 exit;
    ret;
}";
    let body = "
    {
    .param .b32 a;
    st.param.b32 [a], %r2;
    call leave, (a);
    }
    mov.u32 %r10, 1;
    give %r10;
    ret;";
    assert_eq!(run(f, body, &shape(1, 32)), each(32, |t| u32::from(t < 20)));
}
