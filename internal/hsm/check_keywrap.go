package hsm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

func newAES(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key has another length than ours
	}
	return b
}

// rfc3394Unwrap undoes AES key wrap (RFC 3394, clause 2.2.2), to compare a
// token with. It never sees a key that protects anything.
func rfc3394Unwrap(kek, wrapped []byte) ([]byte, error) {
	if len(wrapped) < 24 || len(wrapped)%8 != 0 {
		return nil, errors.New("wrapped key of a wrong length")
	}
	n := len(wrapped)/8 - 1
	block := newAES(kek)
	var b [16]byte
	copy(b[:8], wrapped)
	key := append([]byte(nil), wrapped[8:]...)
	for t := 6 * n; t > 0; t-- {
		r := key[(t-1)%n*8:][:8]
		binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])^uint64(t))
		copy(b[8:], r)
		block.Decrypt(b[:], b[:])
		copy(r, b[8:])
	}
	iv := [8]byte{0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6}
	if subtle.ConstantTimeCompare(b[:8], iv[:]) != 1 {
		return nil, errors.New("wrapped key does not check")
	}
	return key, nil
}
