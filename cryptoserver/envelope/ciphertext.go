package envelope

import "fmt"

// Ciphertext is the stored form of a block: magic "KB" 0x01, suite
// (1 = AES-256-GCM with a 128-bit tag), key id, IV length, IV, ciphertext
// and tag.
type Ciphertext struct {
	KeyID [16]byte
	IV    []byte
	Body  []byte // ciphertext || tag
}

const (
	magic0, magic1, magicVersion = 'K', 'B', 0x01
	suiteAES256GCM               = 1

	// IVSize is the only IV length that suite 1 has (NIST SP 800-38D, 96 bits).
	IVSize = 12
	// TagSize is the length of the GCM tag at the end of the body.
	TagSize = 16
	// CiphertextOverhead is what the stored form adds to a plaintext.
	CiphertextOverhead = ciphertextHead + IVSize + TagSize

	ciphertextHead = 4 + 16 + 1
	maxBody        = 64 << 10
)

// AppendCiphertext appends the stored form. The IV is IVSize bytes.
func AppendCiphertext(dst []byte, c Ciphertext) []byte {
	dst = append(dst, magic0, magic1, magicVersion, suiteAES256GCM)
	dst = append(dst, c.KeyID[:]...)
	dst = append(dst, byte(len(c.IV)))
	dst = append(dst, c.IV...)
	return append(dst, c.Body...)
}

// ParseCiphertext is the inverse of AppendCiphertext; the result aliases its
// input. It refuses other versions and suites with an error that wraps
// ErrFormat and says nothing of the content.
func ParseCiphertext(b []byte) (Ciphertext, error) {
	var c Ciphertext
	if len(b) < ciphertextHead {
		return c, fmt.Errorf("%w: ciphertext too short", ErrFormat)
	}
	if b[0] != magic0 || b[1] != magic1 || b[2] != magicVersion {
		return c, fmt.Errorf("%w: ciphertext of an unknown version", ErrFormat)
	}
	if b[3] != suiteAES256GCM {
		return c, fmt.Errorf("%w: ciphertext of an unknown suite", ErrFormat)
	}
	if b[20] != IVSize {
		return c, fmt.Errorf("%w: ciphertext with an IV of another length", ErrFormat)
	}
	if n := len(b) - ciphertextHead - IVSize; n < TagSize || n > maxBody {
		return c, fmt.Errorf("%w: ciphertext of an impossible length", ErrFormat)
	}
	copy(c.KeyID[:], b[4:20])
	c.IV = b[ciphertextHead : ciphertextHead+IVSize : ciphertextHead+IVSize]
	c.Body = b[ciphertextHead+IVSize : len(b) : len(b)]
	return c, nil
}
