// Package checkpoint fixes the signed head of the audit log's tree: a signed
// note (golang.org/x/mod/sumdb/note) over
//
//	<origin>
//	<size>
//	<root, base64>
//	<time, UTC, microseconds>
//
// with the signature of a cryptoserver's seal key under the origin's name. The
// text holds no control character but the newline, so it is never the canonical
// encoding of anything else that a seal key signs, all of which begin with a zero.
//
// It imports nothing of Kluis, so that whoever checks a proof needs little.
package checkpoint

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// ErrCheckpoint is wrapped whenever a checkpoint does not verify or parse.
var ErrCheckpoint = errors.New("checkpoint does not verify")

// Checkpoint is the head of a tree at a time.
type Checkpoint struct {
	Origin string    // of the log, its name: 1 to 64 printable ASCII characters, no space and no plus
	Size   uint64    // leaves, at most 2^62
	Root   [32]byte  // RFC 6962
	At     time.Time // UTC, microseconds; of the server that signed
}

const (
	timeForm   = "2006-01-02T15:04:05.000000Z"
	maxOrigin  = 64
	maxSize    = 1 << 62
	maxNote    = 4096
	signature  = 64
	lines      = 4
	rootBase64 = 44
)

// ValidOrigin says whether a log may have the name.
func ValidOrigin(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '+' {
			return false
		}
	}
	return s != "" && len(s) <= maxOrigin
}

// Text is what is signed. The error wraps ErrCheckpoint.
func (c Checkpoint) Text() (string, error) {
	at := c.At.UTC()
	if !ValidOrigin(c.Origin) || c.Size > maxSize || at.Year() < 1970 || at.Year() > 9999 {
		return "", fmt.Errorf("%w: origin, size or time out of range", ErrCheckpoint)
	}
	return fmt.Sprintf("%s\n%d\n%s\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]), at.Format(timeForm)), nil
}

// Parse is the inverse of Text; it refuses what Text would not have written.
func Parse(text string) (Checkpoint, error) {
	bad := func(what string) (Checkpoint, error) { return Checkpoint{}, fmt.Errorf("%w: %s", ErrCheckpoint, what) }
	l := strings.SplitAfter(text, "\n")
	if len(text) > maxNote || len(l) != lines+1 || l[lines] != "" {
		return bad("not four lines")
	}
	for i := range lines {
		l[i] = l[i][:len(l[i])-1]
	}
	c := Checkpoint{Origin: l[0]}
	var err error
	if c.Size, err = strconv.ParseUint(l[1], 10, 63); err != nil {
		return bad("no size")
	}
	root, err := base64.StdEncoding.DecodeString(l[2])
	if err != nil || len(l[2]) != rootBase64 || len(root) != len(c.Root) {
		return bad("no root")
	}
	copy(c.Root[:], root)
	if c.At, err = time.Parse(timeForm, l[3]); err != nil {
		return bad("no time")
	}
	if again, err := c.Text(); err != nil || again != text {
		return bad("another form than it is signed in")
	}
	return c, nil
}

// Sign returns the checkpoint as a signed note. sign makes an ES256 signature,
// r||s with the smaller s, with the private part of key.
func Sign(c Checkpoint, key *ecdsa.PublicKey, sign func(digest [32]byte) ([64]byte, error)) (string, error) {
	text, err := c.Text()
	if err != nil {
		return "", err
	}
	k, err := newKey(c.Origin, key)
	if err != nil {
		return "", err
	}
	signed, err := note.Sign(&note.Note{Text: text}, signer{k, sign})
	if err != nil {
		return "", err
	}
	return string(signed), nil
}

// Open verifies a signed note of the log with this origin: at least one of the
// keys, of which there may be any number, must have signed it, and none of them
// badly. Every error wraps ErrCheckpoint.
func Open(signed, origin string, keys ...*ecdsa.PublicKey) (Checkpoint, error) {
	if len(signed) > maxNote {
		return Checkpoint{}, fmt.Errorf("%w: longer than %d bytes", ErrCheckpoint, maxNote)
	}
	var verifiers []note.Verifier
	for _, key := range keys {
		k, err := newKey(origin, key)
		if err != nil {
			return Checkpoint{}, fmt.Errorf("%w: %w", ErrCheckpoint, err)
		}
		verifiers = append(verifiers, k)
	}
	n, err := note.Open([]byte(signed), note.VerifierList(verifiers...))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	c, err := Parse(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != origin {
		return Checkpoint{}, fmt.Errorf("%w: of another log", ErrCheckpoint)
	}
	return c, nil
}

// algorithm is the signature type of the note format (C2SP signed-note): 0xff
// with a name of one's own, since no number is assigned to ES256.
const algorithm = "\xffkluis/es256"

// key is a seal key under the name of a log; a note.Verifier.
type key struct {
	name string
	hash uint32
	pub  *ecdsa.PublicKey
}

func newKey(name string, pub *ecdsa.PublicKey) (*key, error) {
	if !ValidOrigin(name) {
		return nil, errors.New("no name of a log")
	}
	if pub == nil || pub.Curve != elliptic.P256() {
		return nil, errors.New("a seal key is not an ECDSA key on P-256")
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(name + "\n" + algorithm + string(der)))
	return &key{name, binary.BigEndian.Uint32(sum[:]), pub}, nil
}

func (k *key) Name() string    { return k.name }
func (k *key) KeyHash() uint32 { return k.hash }

var halfOrder = new(big.Int).Rsh(elliptic.P256().Params().N, 1)

// Verify accepts one form of each signature only, that with the smaller s.
func (k *key) Verify(msg, sig []byte) bool {
	if len(sig) != signature {
		return false
	}
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	digest := sha256.Sum256(msg)
	return s.Cmp(halfOrder) <= 0 && ecdsa.Verify(k.pub, digest[:], r, s)
}

// signer is a note.Signer.
type signer struct {
	*key
	sign func([32]byte) ([64]byte, error)
}

func (s signer) Sign(msg []byte) ([]byte, error) {
	sig, err := s.sign(sha256.Sum256(msg))
	if err != nil {
		return nil, err
	}
	if !s.Verify(msg, sig[:]) {
		return nil, errors.New("the signature made does not verify")
	}
	return sig[:], nil
}
