package demo

import (
	"fmt"
	"os"

	"kluis/conformance"
	"kluis/meter"
)

// Caller is a supplier of the demo as its own programs know it: where the API
// is, and the files to call it with.
type Caller struct {
	GLN, Name               string
	Gateway, Issuer, CAFile string
	CertificateFile         string
	KeyFile                 string
}

// Callers are the suppliers of the demo in a state folder, its own first, then
// those of the test metering points.
func Callers(state string) ([]Caller, error) {
	l := layout{state}
	if _, err := os.Stat(l.progressFile()); err != nil {
		return nil, fmt.Errorf("there is no demo in %s (%w)", state, err)
	}
	p, err := l.loadProgress()
	if err != nil {
		return nil, err
	}
	setUp, err := meter.ParseDay(p.SetUp)
	if err != nil || p.Gateway == "" || p.Issuer == "" {
		return nil, fmt.Errorf("the demo in %s is not set up yet: wait until kluis demo says that it is ready", state)
	}
	pl, err := newPlan(setUp)
	if err != nil {
		return nil, err
	}
	var out []Caller
	add := func(gln meter.GLN, name, cert, key string) {
		out = append(out, Caller{GLN: gln.String(), Name: name, Gateway: "https://" + p.Gateway, Issuer: "https://" + p.Issuer,
			CAFile: l.operatorCAFile(), CertificateFile: cert, KeyFile: key})
	}
	for _, s := range pl.suppliers {
		cert, key := l.supplierPair(s)
		add(s.gln, s.name, cert, key)
	}
	for _, s := range conformance.Suppliers() {
		cert, key := l.testSupplierPair(s)
		add(s.GLN, s.Name, cert, key)
	}
	return out, nil
}
