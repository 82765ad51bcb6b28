package checkpoint_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"kluis/cryptoserver/checkpoint"
)

const goldenText = "kluis.example/audit\n12\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n2024-06-15T10:00:00.123456Z\n"

func testCheckpoint() checkpoint.Checkpoint {
	c := checkpoint.Checkpoint{Origin: "kluis.example/audit", Size: 12, At: time.Date(2024, 6, 15, 10, 0, 0, 123456000, time.UTC)}
	for i := range c.Root {
		c.Root[i] = 7
	}
	return c
}

func newSigner(t testing.TB) (*ecdsa.PublicKey, func([32]byte) ([64]byte, error)) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &k.PublicKey, func(d [32]byte) (sig [64]byte, err error) {
		r, s, err := ecdsa.Sign(rand.Reader, k, d[:])
		if err != nil {
			return sig, err
		}
		n := elliptic.P256().Params().N
		if s.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
			s.Sub(n, s)
		}
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
		return sig, nil
	}
}

// TestGolden pins the text, and with a signature made once the note: exported
// checkpoints must stay readable.
func TestGolden(t *testing.T) {
	t.Parallel()
	if text, err := testCheckpoint().Text(); err != nil || text != goldenText {
		t.Errorf("%q, %v", text, err)
	}
	if c, err := checkpoint.Parse(goldenText); err != nil || c != testCheckpoint() {
		t.Errorf("%+v, %v", c, err)
	}
	point, err := hex.DecodeString(goldenKey)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := checkpoint.Open(goldenNote, "kluis.example/audit", pub); err != nil || c != testCheckpoint() {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestOpen: only a pinned key's signature on exactly this text opens, and only
// as the log it is of.
func TestOpen(t *testing.T) {
	t.Parallel()
	c := testCheckpoint()
	pub, sign := newSigner(t)
	other, otherSign := newSigner(t)
	signed, err := checkpoint.Sign(c, pub, sign)
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string][]*ecdsa.PublicKey{"alone": {pub}, "among others": {other, pub}} {
		if got, err := checkpoint.Open(signed, c.Origin, keys...); err != nil || got != c {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := checkpoint.Sign(c, pub, otherSign); err == nil {
		t.Error("a signature that does not verify was let out")
	}
	d := c
	d.Origin = "another.log"
	another, err := checkpoint.Sign(d, pub, sign)
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]struct {
		note, origin string
		key          *ecdsa.PublicKey
	}{
		"another key":     {signed, c.Origin, other},
		"no key":          {signed, c.Origin, nil},
		"another name":    {signed, "another.log", pub},
		"another log's":   {another, c.Origin, pub},
		"size changed":    {strings.Replace(signed, "\n12\n", "\n13\n", 1), c.Origin, pub},
		"time changed":    {strings.Replace(signed, ".123456", ".123457", 1), c.Origin, pub},
		"name changed":    {strings.Replace(another, "another.log\n", "kluis.example/audit\n", 1), "another.log", pub},
		"signature moved": {goldenText + "\n" + another[strings.Index(another, "—"):], "another.log", pub},
		"not signed":      {goldenText, c.Origin, pub},
		"empty":           {"", c.Origin, pub},
		"too long":        {signed + strings.Repeat("x", 5000), c.Origin, pub},
	} {
		if got, err := checkpoint.Open(try.note, try.origin, try.key); !errors.Is(err, checkpoint.ErrCheckpoint) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*checkpoint.Checkpoint){
		"no origin":   func(c *checkpoint.Checkpoint) { c.Origin = "" },
		"a space":     func(c *checkpoint.Checkpoint) { c.Origin = "a b" },
		"a plus":      func(c *checkpoint.Checkpoint) { c.Origin = "a+b" },
		"a new line":  func(c *checkpoint.Checkpoint) { c.Origin = "a\nb" },
		"long origin": func(c *checkpoint.Checkpoint) { c.Origin = strings.Repeat("a", 65) },
		"size":        func(c *checkpoint.Checkpoint) { c.Size = 1<<62 + 1 },
		"no time":     func(c *checkpoint.Checkpoint) { c.At = time.Time{} },
	} {
		c := testCheckpoint()
		change(&c)
		if _, err := c.Text(); !errors.Is(err, checkpoint.ErrCheckpoint) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"leading zero": strings.Replace(goldenText, "\n12\n", "\n012\n", 1), "a sign": strings.Replace(goldenText, "\n12\n", "\n+12\n", 1),
		"no end": goldenText[:len(goldenText)-1], "more": goldenText + "x\n", "seconds": strings.Replace(goldenText, ".123456", "", 1),
		"root": strings.Replace(goldenText, "Bwc=", "Bwd=", 1), "carriage return": strings.Replace(goldenText, "\n", "\r\n", 1),
	} {
		if c, err := checkpoint.Parse(text); !errors.Is(err, checkpoint.ErrCheckpoint) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// Whatever parses is written the same way again.
func FuzzParse(f *testing.F) {
	f.Add(goldenText)
	f.Add("a\n0\n" + strings.Repeat("A", 43) + "=\n1970-01-01T00:00:00.000000Z\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := checkpoint.Parse(text)
		if err != nil {
			if !errors.Is(err, checkpoint.ErrCheckpoint) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if again, err := c.Text(); err != nil || again != text {
			t.Fatalf("accepted %q, which is written %q, %v", text, again, err)
		}
	})
}

const (
	goldenKey  = "040dc94ac88b46053edae3369afc738074553873b858844015d7c826e3bfcd445c37f4aaaebff4b96a985a4b5bbca7ff7f18fa155bec3825d0549878f84ff15b2f"
	goldenNote = goldenText + "\n— kluis.example/audit prUMrgPgD05LjB8y1CySgVBOTCCKK358IhVjeAPWhmZOOm21KkmWmkLYSdJwFKGtsO9fD3CKgM3JdcVxP2yH31avd+E=\n"
)
