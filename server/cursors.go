package server

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"kluis/meter"
)

// cursorKind says what a cursor goes on with. The values are part of the
// cursors' keys: never renumber.
type cursorKind uint8

const (
	cursorList    cursorKind = 1 // listMeteringPoints
	cursorQuery   cursorKind = 2 // queryReadings
	cursorChanges cursorKind = 3 // listChanges
)

const (
	sealedCursorVersion = 1
	// cursorLife is for how long a cursor is good, but for those of the feed of
	// changes (feedBack). What it stands for may be asked for anew at any time.
	cursorLife = 7 * 24 * time.Hour
	// cursorSkew is by how much the clock of the gateway that sealed a cursor
	// may be ahead.
	cursorSkew = 5 * time.Minute
	// maxCursor bounds a cursor's text: the contract's maxLength.
	maxCursor      = 1024
	maxCursorState = 512
	maxCursorKeys  = 8

	cursorInfo = "kluis/cursor/1\n"
)

// errCursor is all that is said of a cursor that does not open: one made up,
// one of another caller, of another request or of another operation are not
// told apart.
var (
	errCursor    = errors.New("not a cursor for this request")
	errCursorOld = errors.New("a cursor of too long ago")
)

// cursors seals and opens cursors: opaque, so that no metering point gets into
// the logs of who keeps URLs, and nobody can make one up. They hold no right:
// what is given from a cursor on is decided as if it were asked for anew.
//
// A cursor is base64url, without padding, of
//
//	version 1, nonce (12 bytes), AES-256-GCM of (seconds since 1970 (8 bytes, big endian), state)
//
// under a key of its own for each kind, caller and binding, derived by HKDF
// with SHA-256 (no salt; info: "kluis/cursor/1\n", kind, GLN as 8 bytes, the 32
// bytes bound to) from one that all gateways share. So a cursor of anything
// else is as good as one made up, and no key is used so often that random
// nonces could meet.
type cursors struct {
	keys [][32]byte // the first one seals, all open
}

func newCursors(keys [][32]byte) (cursors, error) {
	if len(keys) == 0 || len(keys) > maxCursorKeys {
		return cursors{}, fmt.Errorf("server: %d keys for cursors, must be 1 to %d", len(keys), maxCursorKeys)
	}
	for i, k := range keys {
		if k == ([32]byte{}) || slices.Contains(keys[:i], k) {
			return cursors{}, errors.New("server: a key for cursors is all zero, or there twice")
		}
	}
	return cursors{slices.Clone(keys)}, nil
}

// cursorsOf are the cursors of one caller in one operation, bound to what it
// asked for: what must not differ when it goes on. binding may be zero.
type cursorsOf struct {
	boxes []cipher.AEAD // by key
	life  time.Duration
}

func (c cursors) of(kind cursorKind, caller meter.GLN, binding [32]byte) (cursorsOf, error) {
	info := append([]byte(cursorInfo), byte(kind))
	info = binary.BigEndian.AppendUint64(info, uint64(caller.Int64()))
	info = append(info, binding[:]...)
	of := cursorsOf{life: cursorLife}
	if kind == cursorChanges {
		of.life = feedBack
	}
	for _, k := range c.keys {
		key, err := hkdf.Key(sha256.New, k[:], nil, string(info), 32)
		if err != nil {
			return cursorsOf{}, fmt.Errorf("key for cursors: %w", err)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return cursorsOf{}, fmt.Errorf("key for cursors: %w", err)
		}
		box, err := cipher.NewGCM(block)
		if err != nil {
			return cursorsOf{}, fmt.Errorf("key for cursors: %w", err)
		}
		of.boxes = append(of.boxes, box)
	}
	return of, nil
}

// seal makes a cursor of a state, of at most maxCursorState bytes.
func (c cursorsOf) seal(state []byte, now time.Time) string {
	var nonce [12]byte
	_, _ = rand.Read(nonce[:]) // never fails: see crypto/rand
	return c.sealWith(nonce, state, now)
}

func (c cursorsOf) sealWith(nonce [12]byte, state []byte, now time.Time) string {
	if len(state) > maxCursorState {
		panic("server: the state of a cursor is too long") // states have a fixed size
	}
	box := c.boxes[0]
	plain := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(state)), uint64(now.Unix()))
	plain = append(plain, state...)
	sealed := make([]byte, 0, 1+len(nonce)+len(plain)+box.Overhead())
	sealed = append(sealed, sealedCursorVersion)
	sealed = append(sealed, nonce[:]...)
	return base64.RawURLEncoding.EncodeToString(box.Seal(sealed, nonce[:], plain, nil))
}

// open gives back the state of a cursor: errCursor when it is none of these,
// errCursorOld when it is one of too long ago.
func (c cursorsOf) open(s string, now time.Time) ([]byte, error) {
	if len(s) > maxCursor {
		return nil, errCursor
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	// The decoder passes over line breaks.
	if err != nil || base64.RawURLEncoding.EncodedLen(len(b)) != len(s) || len(b) < 1+12 || b[0] != sealedCursorVersion {
		return nil, errCursor
	}
	for _, box := range c.boxes {
		plain, err := box.Open(nil, b[1:13], b[13:], nil)
		if err != nil || len(plain) < 8 {
			continue
		}
		sealed := time.Unix(int64(binary.BigEndian.Uint64(plain)), 0)
		if now.Sub(sealed) > c.life || sealed.Sub(now) > cursorSkew {
			return nil, errCursorOld
		}
		return plain[8:], nil
	}
	return nil, errCursor
}

// The reasons of faults of a cursor.
const (
	wantCursor    = "must be a cursor that this API gave for the same request of the same caller"
	wantCursorNew = "must be at most 7 days old: ask without it, from the start"
)

// cursorFault is what is told of a cursor that does not open.
func cursorFault(err error) string {
	if errors.Is(err, errCursorOld) {
		return wantCursorNew
	}
	return wantCursor
}

// The state of a list's cursor is the metering point after which it goes on,
// as 8 bytes big endian.
func listState(after meter.EAN) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(after.Int64()))
}

func parseListState(b []byte) (meter.EAN, error) {
	if len(b) != 8 {
		return meter.EAN{}, errCursor
	}
	ean, err := meter.EANFromInt64(int64(binary.BigEndian.Uint64(b)))
	if err != nil {
		return meter.EAN{}, errCursor
	}
	return ean, nil
}
