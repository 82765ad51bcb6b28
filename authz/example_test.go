package authz_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"log"
	"time"

	"kluis/authz"
	"kluis/meter"
)

// exampleSigner stands for the seal key in an HSM.
type exampleSigner struct{ key *ecdsa.PrivateKey }

func (s exampleSigner) KeyID() authz.KeyID { return authz.KeyIDOf(&s.key.PublicKey) }

func (s exampleSigner) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, ss, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return sig, err
	}
	r.FillBytes(sig[:32])
	ss.FillBytes(sig[32:])
	return sig, nil
}

// From steps to a decision: the registrar's side, and the gateway's.
func Example() {
	must := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}
	ean, err := meter.ParseEAN("871685900000000011")
	must(err)
	gln, err := meter.ParseGLN("8712423010208")
	must(err)
	profile, err := meter.ParseProfile(meter.NL())
	must(err)
	day := func(s string) meter.Day {
		d, err := meter.ParseDay(s)
		must(err)
		return d
	}

	// The cryptoserver applies steps, one version each, and seals the last.
	var file *authz.LegalFile
	at := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	for _, step := range []authz.Step{
		authz.Register{EAN: ean, Commodity: meter.Electricity},
		authz.SetOccupancy{Days: meter.DayRange{From: day("2025-03-15"), To: meter.MaxDay}},
		authz.SetSupply{Supplier: gln, Days: meter.DayRange{From: day("2025-03-15"), To: meter.MaxDay}},
	} {
		file, err = authz.Apply(file, step, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, at, profile.Location())
		must(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	sealed, err := authz.Seal(file.Payload(), exampleSigner{key})
	must(err)

	// The gateway verifies it against the pinned keys, and decides.
	keys, err := authz.NewSealKeys(&key.PublicKey)
	must(err)
	file, err = keys.LegalFile(sealed)
	must(err)
	grant, withheld, err := authz.Decide(party{gln}, authz.Request{
		EAN:     ean,
		Purpose: meter.Billing,
		Days:    meter.DayRange{From: day("2025-03-01"), To: day("2025-06-01")},
		Fields:  []meter.FieldCode{1, 6}, // import_low, import_intervals
	}, file, profile, at)
	must(err)

	for _, item := range grant.Items() {
		fmt.Println(item.Spec.Field.Name, item.Spec.Days.Ranges(), item.Spec.Granularity, item.Basis, item.Rule)
	}
	for _, reads := range grant.Reads() {
		fmt.Println("open", reads.Days.Len(), "blocks of field", reads.Field)
	}
	for _, w := range withheld {
		fmt.Println("field", w.Field, "withheld", w.Days.From, w.Days.To, w.Reason)
	}
	// Output:
	// import_low [{2025-04-01 2025-06-01}] P1M SUPPLY_PERIODIC nl-billing-periodic
	// open 3 blocks of field 1
	// field 1 withheld 2025-03-01 2025-03-15 NO_SUPPLY
	// field 1 withheld 2025-03-15 2025-04-01 PARTIAL_PERIOD
	// field 6 withheld 2025-03-01 2025-06-01 NOT_COVERED
}
