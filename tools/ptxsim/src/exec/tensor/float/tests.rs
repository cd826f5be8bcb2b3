use super::{Bf16, E4m3, E5m2, Element, F16, from_f16};
use half::{bf16, f16};

#[test]
fn every_half_is_unpacked() {
    for bits in 0..=u16::MAX {
        let expected = f16::from_bits(bits).to_f32();
        let word = u32::from(bits) | u32::from(!bits) << 16;
        for (got, expected) in F16::unpack(word).into_iter().zip([expected, f16::from_bits(!bits).to_f32()]) {
            assert!(got == expected || (got.is_nan() && expected.is_nan()), "{bits:#06x}: {got} {expected}");
        }
        let all = F16::unpack_all(&[word; 32]);
        assert!(all.iter().all(|x| x[0] == expected || (x[0].is_nan() && expected.is_nan())));
        assert_eq!(from_f16(u32::from(bits) << 16).is_sign_negative(), bits >> 15 != 0);
        let expected = bf16::from_bits(bits).to_f32();
        let got = Bf16::unpack(word)[0];
        assert!(got == expected || (got.is_nan() && expected.is_nan()), "{bits:#06x}: {got} {expected}");
    }
}

#[test]
fn every_byte_is_unpacked() {
    for byte in 0..=u8::MAX {
        let (sign, exponent, mantissa) = (byte >> 7, i32::from(byte >> 3 & 15), f32::from(byte & 7));
        let magnitude = match exponent {
            0 => mantissa / 8.0 * 2f32.powi(-6),
            15 if mantissa == 7.0 => f32::NAN,
            e => (1.0 + mantissa / 8.0) * 2f32.powi(e - 7),
        };
        let e4m3 = if sign == 1 { -magnitude } else { magnitude };
        let word = u32::from_le_bytes([0, byte, 0x38, byte]);
        let got = E4m3::unpack(word);
        assert_eq!((got[0], got[2]), (0.0, 1.0));
        assert!(got[1] == e4m3 || (got[1].is_nan() && e4m3.is_nan()), "{byte:#04x}: {} {e4m3}", got[1]);
        assert_eq!(got[3].to_bits(), got[1].to_bits());
        let e5m2 = f16::from_bits(u16::from(byte) << 8).to_f32();
        let got = E5m2::unpack(word)[1];
        assert!(got == e5m2 || (got.is_nan() && e5m2.is_nan()), "{byte:#04x}: {got} {e5m2}");
    }
}
