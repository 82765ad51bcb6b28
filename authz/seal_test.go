package authz

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/internal/canonical"
)

func publicPEM(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func sealKeys(t testing.TB, signers ...softSigner) *SealKeys {
	t.Helper()
	var text []byte
	for _, s := range signers {
		text = append(text, publicPEM(t, &s.key.PublicKey)...)
	}
	k, err := ParseSealKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func seal(t testing.TB, payload []byte, s Signer) []byte {
	t.Helper()
	b, err := Seal(payload, s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// forge makes an envelope around anything, without the checks of Seal.
func forge(t testing.TB, domain string, payload []byte, s softSigner) []byte {
	t.Helper()
	id := s.KeyID()
	w := canonical.New(domain, versionSealed)
	w.Fixed(id[:])
	w.Bytes(payload)
	sig, err := s.SignDigest(sha256.Sum256(w.Encoded()))
	if err != nil || !lowS(&sig) {
		t.Fatal("no signature")
	}
	w.Fixed(sig[:])
	return w.Encoded()
}

func TestSealedFactsVerify(t *testing.T) {
	t.Parallel()
	one, two := newSigner(t), newSigner(t)
	keys := sealKeys(t, one, two)
	if len(keys.IDs()) != 2 {
		t.Errorf("%d keys", len(keys.IDs()))
	}
	f, s := life(t), supplier(t, nil, t0)
	for _, signer := range []softSigner{one, two} {
		gotF, err := keys.LegalFile(seal(t, f.Payload(), signer))
		if err != nil || gotF.Digest() != f.Digest() {
			t.Errorf("legal file: %v", err)
		}
		gotS, err := keys.Supplier(seal(t, s.Payload(), signer))
		if err != nil || gotS.Digest() != s.Digest() {
			t.Errorf("supplier: %v", err)
		}
	}
}

// Every bit counts, and a failure is never remembered as a success.
func TestEveryBitCounts(t *testing.T) {
	t.Parallel()
	signer := newSigner(t)
	keys := sealKeys(t, signer)
	sealed := seal(t, history(t, t0, Register{home, 1}).Payload(), signer)
	if _, err := keys.LegalFile(sealed); err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		for bit := range 8 {
			b := bytes.Clone(sealed)
			b[i] ^= 1 << bit
			if f, err := keys.LegalFile(b); !errors.Is(err, ErrSeal) || f != nil {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
	}
	for _, b := range [][]byte{nil, sealed[:len(sealed)-1], append(bytes.Clone(sealed), 0), sealed[1:]} {
		if _, err := keys.LegalFile(b); !errors.Is(err, ErrSeal) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
	}
}

func TestSealAttacks(t *testing.T) {
	t.Parallel()
	signer, other := newSigner(t), newSigner(t)
	keys := sealKeys(t, signer)
	file, record := life(t).Payload(), supplier(t, nil, t0).Payload()

	// A database superuser's own key, and the pinned key's id over it.
	foreign := seal(t, file, other)
	relabelled := bytes.Clone(foreign)
	id := signer.KeyID()
	copy(relabelled[4+len(domainSealed)+1:], id[:])
	// The other value of s: verifies as ECDSA, and is refused.
	highS := seal(t, file, signer)
	s := new(big.Int).SetBytes(highS[len(highS)-32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(highS[len(highS)-32:])
	digest := sha256.Sum256(highS[:len(highS)-64])
	if !ecdsa.Verify(&signer.key.PublicKey, digest[:], new(big.Int).SetBytes(highS[len(highS)-64:len(highS)-32]), s) {
		t.Fatal("the mirrored signature does not verify; the test is wrong")
	}
	// The right key, naming another.
	w := canonical.New(domainSealed, versionSealed)
	w.Fixed([]byte("8 bytes!"))
	w.Bytes(file)
	sig, err := signer.SignDigest(sha256.Sum256(w.Encoded()))
	if err != nil || !lowS(&sig) {
		t.Fatal("no signature")
	}
	w.Fixed(sig[:])
	misnamed := w.Encoded()
	noSig := seal(t, file, signer)
	clear(noSig[len(noSig)-64:])
	// Signed with the right key, but wrong inside.
	bad := *life(t)
	bad.facts = bad.facts.clone()
	bad.supply[0].Days.To++ // overlap
	for name, b := range map[string][]byte{
		"another key":           foreign,
		"another key, our id":   relabelled,
		"our key, another id":   misnamed,
		"mirrored signature":    highS,
		"zero signature":        noSig,
		"another domain":        forge(t, "kluis/sealer", file, signer),
		"signed but wrong":      forge(t, domainSealed, bad.encode(), signer),
		"a supplier record":     seal(t, record, signer),
		"not sealed at all":     file,
		"sealed twice":          forge(t, domainSealed, seal(t, file, signer), signer),
		"payload past its size": forge(t, domainSealed, make([]byte, maxPayload+1), signer),
	} {
		for range 2 { // also when tried again
			if f, err := keys.LegalFile(b); !errors.Is(err, ErrSeal) || f != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// One type is never taken for the other, in whatever order they come.
	sealedRecord := seal(t, record, signer)
	if _, err := keys.Supplier(sealedRecord); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.LegalFile(sealedRecord); !errors.Is(err, ErrSeal) {
		t.Errorf("supplier record as legal file: %v", err)
	}
	sealedFile := seal(t, file, signer)
	if _, err := keys.LegalFile(sealedFile); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Supplier(sealedFile); !errors.Is(err, ErrSeal) {
		t.Errorf("legal file as supplier record: %v", err)
	}
}

// fixedSigner returns the same signature, whatever it signs.
type fixedSigner struct {
	softSigner
	sig [64]byte
}

func (s fixedSigner) SignDigest([32]byte) ([64]byte, error) { return s.sig, nil }

func TestSealRefuses(t *testing.T) {
	t.Parallel()
	signer := newSigner(t)
	file := life(t).Payload()
	for name, payload := range map[string][]byte{
		"nothing": nil, "junk": []byte("junk"), "a step": grant(1).Encode(), "a tail": append(bytes.Clone(file), 0), "too much": make([]byte, maxPayload+1),
	} {
		if b, err := Seal(payload, signer); !errors.Is(err, ErrSeal) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("token gone")
	if b, err := Seal(file, softSigner{key: signer.key, err: broken}); !errors.Is(err, broken) || b != nil {
		t.Errorf("signer's error: %v", err)
	}
	order := elliptic.P256().Params().N
	for _, rs := range [][2]*big.Int{{big.NewInt(0), big.NewInt(1)}, {big.NewInt(1), big.NewInt(0)}, {order, big.NewInt(1)}, {big.NewInt(1), order}} {
		var sig [64]byte
		rs[0].FillBytes(sig[:32])
		rs[1].FillBytes(sig[32:])
		if b, err := Seal(file, fixedSigner{signer, sig}); !errors.Is(err, ErrSeal) || b != nil {
			t.Errorf("r = %v, s = %v: %v", rs[0], rs[1], err)
		}
	}
}

// A sealed fact made once with a key that no longer exists: the format holds.
func TestSealedGolden(t *testing.T) {
	t.Parallel()
	keys, err := ParseSealKeys([]byte(goldenSealKey))
	if err != nil {
		t.Fatal(err)
	}
	id := keys.IDs()[0]
	if got := hex.EncodeToString(id[:]); got != goldenSealKeyID {
		t.Errorf("key id %s", got)
	}
	sealed, err := hex.DecodeString(goldenSealed)
	if err != nil {
		t.Fatal(err)
	}
	f, err := keys.LegalFile(sealed)
	if err != nil {
		t.Fatal(err)
	}
	if d := f.Digest(); hex.EncodeToString(d[:]) != goldenLegalFileDigest {
		t.Errorf("digest %x", d)
	}
}

func TestVerifiedOnceAndBounded(t *testing.T) {
	t.Parallel()
	signer := newSigner(t)
	keys := sealKeys(t, signer)
	sealed := seal(t, life(t).Payload(), signer)
	first, err := keys.LegalFile(sealed)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				if again, err := keys.LegalFile(bytes.Clone(sealed)); err != nil || again != first {
					t.Errorf("parsed again, or %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	// Failures leave nothing behind.
	for i := range 100 {
		b := bytes.Clone(sealed)
		b[len(b)-1-i%64] ^= byte(1 + i/64)
		if _, err := keys.LegalFile(b); err == nil {
			t.Fatal("accepted")
		}
	}
	if n := keys.legalFiles.Len(); n != 1 {
		t.Errorf("%d entries", n)
	}
	// A long file is not kept.
	long := seal(t, largest(t).encode(), signer)
	one, err := keys.LegalFile(long)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := keys.LegalFile(long); err != nil || one == two || keys.legalFiles.Len() != 1 {
		t.Errorf("kept, or %v", err)
	}
}

func TestNewSealKeysRefuses(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string][]*ecdsa.PublicKey{
		"none": {}, "nil": {nil}, "P-384": {&p384.PublicKey}, "empty": {{}},
	} {
		if k, err := NewSealKeys(keys...); err == nil || k != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if id := KeyIDOf(nil); id != (KeyID{}) {
		t.Errorf("id of no key: %x", id)
	}
}

func TestParseSealKeysRefuses(t *testing.T) {
	t.Parallel()
	signer := newSigner(t)
	good := publicPEM(t, &signer.key.PublicKey)
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(signer.key)
	if err != nil {
		t.Fatal(err)
	}
	damaged := strings.Replace(string(good), "M", "*", 1)
	for name, text := range map[string]string{
		"empty":              "",
		"no PEM":             "hello",
		"a damaged block":    damaged + string(good),
		"damaged at the end": string(good) + damaged,
		"cut short":          string(good) + string(good[:len(good)/2]),
		"a private key":      string(good) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
		"private as public":  string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: private})),
		"another type":       strings.ReplaceAll(string(good), "PUBLIC KEY", "KEY"),
		"Ed25519":            string(publicPEM(t, ed)),
	} {
		if k, err := ParseSealKeys([]byte(text)); err == nil || k != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// Comments and the same key twice are fine.
	k, err := ParseSealKeys(append(append([]byte("# server 1\n"), good...), good...))
	if err != nil || len(k.IDs()) != 1 {
		t.Errorf("%v", err)
	}
}

func FuzzSealed(f *testing.F) {
	signer := newSigner(f)
	keys := sealKeys(f, signer)
	valid := map[string]bool{}
	for _, p := range [][]byte{life(f).Payload(), history(f, t0, Register{home, 1}).Payload()} {
		b := seal(f, p, signer)
		valid[string(b)] = true
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(b[:len(b)-1:len(b)-1], b[len(b)-1]^1))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		f, err := keys.LegalFile(b)
		if (err == nil) != valid[string(b)] || err != nil && !errors.Is(err, ErrSeal) {
			t.Fatalf("%v", err)
		}
		digest, err2 := PayloadDigest(b)
		if err == nil && (err2 != nil || digest != f.Digest()) || err2 != nil && (digest != [32]byte{} || !errors.Is(err2, ErrSeal)) {
			t.Fatalf("%x, %v", digest, err2)
		}
	})
}

// The digest of a payload ties a version to the one after it, and is no
// verification.
func TestPayloadDigest(t *testing.T) {
	signer := newSigner(t)
	first := life(t)
	b := seal(t, first.Payload(), signer)
	next, err := Apply(first, SetOptOut{days("2025-01-01", "2025-01-02")}, operator, t0.Add(time.Hour), amsterdam)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := PayloadDigest(b); err != nil || d != first.Digest() || d != next.Previous() {
		t.Errorf("%x, %v", d, err)
	}
	// Another signature, right or wrong, is the same payload; another payload is not.
	if d, err := PayloadDigest(seal(t, first.Payload(), newSigner(t))); err != nil || d != first.Digest() {
		t.Errorf("another key: %x, %v", d, err)
	}
	if d, err := PayloadDigest(seal(t, next.Payload(), signer)); err != nil || d == first.Digest() {
		t.Errorf("another payload: %x, %v", d, err)
	}
	for _, bad := range [][]byte{nil, {}, b[1:], b[:len(b)-1], append(slices.Clone(b), 0), first.Payload()} {
		if d, err := PayloadDigest(bad); !errors.Is(err, ErrSeal) || d != [32]byte{} {
			t.Errorf("%d bytes: %x, %v", len(bad), d, err)
		}
	}
}
