package est_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"keystead/est"
)

// TestKeyWrap holds wrapping against the vectors of RFC 3394, 4.
func TestKeyWrap(t *testing.T) {
	for _, test := range []struct{ name, wrapping, key, want string }{
		{"4.1", "000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5"},
		{"4.3", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "00112233445566778899aabbccddeeff", "64e8c3f9ce0f5ba263e9777905818a2a93c8191e7d6e8ae7"},
		{"4.6", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f", "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"},
	} {
		got, err := est.WrapKey(must(hex.DecodeString(test.wrapping)), must(hex.DecodeString(test.key)))
		if err != nil || hexOf(got) != test.want {
			t.Errorf("%s: got %x, %v, want %s", test.name, got, err, test.want)
		}
	}
	for _, bad := range [][]byte{nil, make([]byte, 8), make([]byte, 17)} {
		if out, err := est.WrapKey(make([]byte, 32), bad); err == nil {
			t.Errorf("%d bytes were wrapped as %x", len(bad), out)
		}
	}
}

// TestKeyDerivation holds it against vectors of NIST's CAVS for ANSI X9.63-2001, SHA-256.
func TestKeyDerivation(t *testing.T) {
	for _, test := range []struct{ secret, info, want string }{
		{"96c05619d56c328ab95fe84b18264b08725b85e33fd34f08", "", "443024c3dae66b95e6f5670601558f71"},
		{
			"22518b10e70f2a3f243810ae3254139efbee04aa57c7af7d", "75eef81aa3041e33b80971203d2c0c52",
			"c498af77161cc59f2962b9a713e2b215152d139766ce34a776df11866a69bf2e52a13d9c7c6fc878c50c5ea0bc7b00e0da2447cfd874f6cf92f30d0097111485500c90c3af8b487872d04685d14c8d1dc8d7fa08beb0ce0ababc11f0bd496269142d43525a78e5bc79a17f59676a5706dc54d54d4d1f0bd7e386128ec26afc21",
		},
	} {
		want := must(hex.DecodeString(test.want))
		if got := est.DeriveKey(sha256.New, must(hex.DecodeString(test.secret)), must(hex.DecodeString(test.info)), len(want)); hexOf(got) != test.want {
			t.Errorf("of %s: got %x, want %s", test.secret, got, test.want)
		}
	}
}
