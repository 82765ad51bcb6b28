package envelope_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

func testPerson(t testing.TB) meter.Person {
	t.Helper()
	c, err1 := meter.ParsePostcode("1234AB")
	h, err2 := meter.ParseHouseNumber("17")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return meter.Person{Name: "J. Özdemir", Address: meter.Address{Street: "Dorpsstraat", HouseNumber: h, Addition: "A", Postcode: c, City: "Ons Dorp"}}
}

func TestPersonGolden(t *testing.T) {
	t.Parallel()
	p := testPerson(t)
	got, err := envelope.AppendPerson([]byte{0xff}, &p)
	if err != nil {
		t.Fatal(err)
	}
	zeros := func(n int) string { return strings.Repeat("00", n) }
	want := "ff" + "01" + "03" + "00000011" +
		"06" + "313233344142" + zeros(4) +
		"0b" + "4a2e20c3967a64656d6972" + zeros(117) +
		"0b" + "446f72707373747261617400"[:22] + zeros(85) +
		"01" + "41" + zeros(15) +
		"08" + "4f6e7320446f7270" + zeros(56)
	if hex.EncodeToString(got) != want {
		t.Errorf("%x\nwant\n%s", got, want)
	}
	if len(got) != 1+envelope.PersonSize || envelope.PersonSize != 325 {
		t.Errorf("%d bytes, %d announced", len(got)-1, envelope.PersonSize)
	}
	back, err := envelope.ParsePerson(got[1:])
	if err != nil || back != p {
		t.Errorf("%+v, %v", back, err)
	}
	const address = "000000136b6c7569732f616464726573732d696e64657801" + "00000006313233344142" + "00000011"
	if got := hex.EncodeToString(envelope.AddressMessage(p.Address.Postcode, p.Address.HouseNumber)); got != address {
		t.Errorf("address %s, want %s", got, address)
	}
}

// Every change of a byte is refused or reads as another person, which encodes
// to exactly those bytes again.
func TestPersonHasOneEncoding(t *testing.T) {
	t.Parallel()
	p := testPerson(t)
	good, err := envelope.AppendPerson(nil, &p)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range good {
		for _, flip := range []byte{0x01, 0x20, 0x80, 0xff} {
			b := bytes.Clone(good)
			b[i] ^= flip
			back, err := envelope.ParsePerson(b)
			if err != nil {
				if refused++; !errors.Is(err, envelope.ErrFormat) || strings.Contains(err.Error(), "zdemir") {
					t.Fatal(err)
				}
				continue
			}
			again, err := envelope.AppendPerson(nil, &back)
			if err != nil || !bytes.Equal(again, b) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
	if refused < 1000 {
		t.Errorf("only %d of the changes were refused", refused)
	}
	for _, b := range [][]byte{nil, good[:len(good)-1], append(bytes.Clone(good), 0)} {
		if _, err := envelope.ParsePerson(b); !errors.Is(err, envelope.ErrFormat) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
	long := p
	long.Name = strings.Repeat("x", meter.MaxName+1)
	if b, err := envelope.AppendPerson(nil, &long); err == nil || len(b) != 0 {
		t.Errorf("a name that is too long: %v", err)
	}
}

// No identity is a block, and no block an identity.
func TestPersonIsNoBlock(t *testing.T) {
	t.Parallel()
	p := testPerson(t)
	b, err := envelope.AppendPerson(nil, &p)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := meter.ParseProfile(meter.NL())
	if err != nil {
		t.Fatal(err)
	}
	var block meter.Block
	for _, class := range []meter.Class{meter.Registers, meter.Intervals, meter.Identity} {
		for r := meter.Resolution(0); r <= meter.P1M; r++ {
			if meter.DecodeBlock(b, &block, 19797, r, class, profile.Location()) == nil {
				t.Errorf("decodes as %s at %s", class, r)
			}
		}
	}
	block = meter.Block{Day: 19797, Resolution: meter.P1D, Values: []meter.Value{1}}
	plain, err := meter.AppendBlock(nil, &block, meter.Registers, profile.Location())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := envelope.ParsePerson(plain); err == nil {
		t.Error("a block reads as an identity")
	}
}

func FuzzParsePerson(f *testing.F) {
	p := testPerson(f)
	good, _ := envelope.AppendPerson(nil, &p)
	f.Add(good)
	f.Add(make([]byte, envelope.PersonSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := envelope.ParsePerson(b)
		if err != nil {
			return
		}
		again, err := envelope.AppendPerson(nil, &p)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x reads as %x: %v", b, again, err)
		}
	})
}
