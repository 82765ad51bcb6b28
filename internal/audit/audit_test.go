package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// full has every part that a record of readings may have.
func full() audit.Record {
	return audit.Record{
		InteractionID: [16]byte{0x10, 15: 0x1f},
		At:            time.Date(2026, 3, 29, 1, 0, 0, 123456000, time.UTC),
		Operation:     audit.Readings,
		Supplier:      must(meter.ParseGLN("8712423000018")),
		TokenID:       [32]byte{0x20, 31: 0x2f},
		Certificate:   [32]byte{0x30, 31: 0x3f},
		Employee:      "agent-17",
		Reason:        "zaak 4711 \u00e9",
		EAN:           must(meter.ParseEAN("871687140000000019")),
		Purpose:       meter.EnergyManagement,
		Days:          meter.DayRange{From: 20454, To: 20485},
		Fields:        []meter.FieldCode{1, 2, 6},
		Resolution:    meter.PT1H,
		Kind:          meter.Consumption,
		AsOf:          time.Date(2026, 3, 15, 12, 0, 0, 0, time.UTC),
		Outcome:       audit.Partly,
		LegalFile:     [32]byte{0x40, 31: 0x4f},
		FileVersion:   7,
		Profile:       [32]byte{0x50, 31: 0x5f},
		Granted: []audit.Granted{{
			Field:       6,
			Days:        meter.NewDaySet(meter.DayRange{From: 20454, To: 20460}, meter.DayRange{From: 20470, To: 20485}),
			Kind:        meter.Consumption,
			Granularity: meter.PT15M,
			Basis:       meter.Consent,
			Rule:        "nl-consent",
		}},
		Withheld: []authz.Withheld{{Field: 6, Days: meter.DayRange{From: 20460, To: 20470}, Reason: meter.NoConsent}},
		Receipt:  []byte("receipt"),
	}
}

// noRelation is all that a record of an unknown or foreign metering point may
// say.
func noRelation() audit.Record {
	r := full()
	r.Outcome = audit.NoRelation
	r.LegalFile, r.FileVersion, r.Granted, r.Withheld, r.Receipt = [32]byte{}, 0, nil, nil, nil
	return r
}

// dryRun is a record of what was told.
func dryRun() audit.Record {
	r := full()
	r.Operation, r.Outcome, r.Purpose = audit.DryRun, audit.Given, 0
	r.Resolution, r.Kind, r.AsOf, r.Withheld, r.Receipt = 0, 0, time.Time{}, nil, nil
	return r
}

func list() audit.Record {
	return audit.Record{
		InteractionID: [16]byte{1}, At: time.UnixMicro(1).UTC(), Operation: audit.List, Supplier: full().Supplier, Outcome: audit.Given,
	}
}

func changes() audit.Record {
	r := list()
	r.Operation = audit.Changes
	return r
}

// unchanged is a record of readings that the caller had already.
func unchanged() audit.Record {
	r := full()
	r.Outcome, r.Receipt = audit.Unchanged, nil
	return r
}

func consents() audit.Record {
	r := list()
	r.Operation, r.EAN = audit.Consents, full().EAN
	return r
}

// step is a consent requested.
func step() audit.Record {
	r := consents()
	r.Operation, r.Purpose, r.ConsentID, r.Action = audit.ConsentStep, meter.EnergyManagement, [16]byte{0x60, 15: 0x6f}, authz.ActionRequest
	r.LegalFile, r.FileVersion, r.Profile = full().LegalFile, 8, full().Profile
	return r
}

// accessLog is that of the customer who moved in on 2026-01-01.
func accessLog() audit.Record {
	r := consents()
	r.Operation, r.Employee, r.Reason = audit.AccessLog, "agent-17", "x"
	r.Days = meter.DayRange{From: 20454, To: meter.MaxDay}
	return r
}

// connection is told, with the name opened.
func connection() audit.Record {
	r := consents()
	r.Operation, r.Employee, r.Reason, r.Purpose, r.Receipt = audit.Connection, "agent-17", "x", meter.CustomerService, []byte("receipt")
	r.LegalFile, r.FileVersion, r.Profile = full().LegalFile, 8, full().Profile
	return r
}

func find() audit.Record {
	r := connection()
	r.Operation = audit.Find
	return r
}

// foundNone is a find of an address at which there is nothing.
func foundNone() audit.Record {
	r := oversee()
	r.Operation, r.Outcome = audit.Find, audit.NoRelation
	return r
}

func oversee() audit.Record {
	r := list()
	r.Operation, r.Employee, r.Reason = audit.Oversee, "agent-17", "x"
	return r
}

// supplierStep is one suspended.
func supplierStep() audit.Record {
	r := oversee()
	r.Operation, r.Target, r.Suspend, r.TargetVersion, r.TargetDigest = audit.SupplierStep, full().Supplier, true, 9, full().LegalFile
	return r
}

const zeros32 = "0000000000000000000000000000000000000000000000000000000000000000"

// TestGolden fixes the encoding for ever: digests of it are logged.
func TestGolden(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte("receipt"))
	head := "00000013" + hex.EncodeToString([]byte("kluis/access-record")) + "01"
	text := func(s string) string { return fmt.Sprintf("%08x%x", len(s), s) }
	const (
		supplier  = "000007ec84e0c7d2"
		token     = "2000000000000000000000000000000000000000000000000000000000" + "00002f"
		cert      = "3000000000000000000000000000000000000000000000000000000000" + "00003f"
		ean       = "0c18dad5def9e813"
		days      = "00004fe6" + "00005005"
		noDays    = "00000000" + "00000000"
		none      = "00000000"
		fields    = "00000003" + "0001" + "0002" + "0006"
		asOf      = "00064d0ed7765000"
		noTime    = "0000000000000000"
		noConsent = "00000000000000000000000000000000" + "00"
		noFile    = zeros32 + "0000000000000000"
		file      = "4000000000000000000000000000000000000000000000000000000000" + "00004f"
		profile   = "5000000000000000000000000000000000000000000000000000000000" + "00005f"
	)
	when := "1000000000000000000000000000001f" + "00064e1f40e76640"
	early := "01000000000000000000000000000000" + "0000000000000001"
	who := supplier + token + cert + text("agent-17") + text("zaak 4711 \u00e9")
	bare := supplier + zeros32 + zeros32 + none + none // no token, certificate, employee or reason
	granted := "00000001" + "0006" + "00000002" + "00004fe6" + "00004fec" + "00004ff6" + "00005005" + "02" + "01" + "05" + text("nl-consent")
	for name, c := range map[string]struct {
		r    audit.Record
		want string
	}{
		"full": {full(), when + "01" + who + ean + "02" + days + fields + "02" + "02" + asOf + noConsent + "02" + file + "0000000000000007" + profile +
			granted + "00000001" + "0006" + "00004fec" + "00004ff6" + "04" + "01" + hex.EncodeToString(sum[:])},
		"no relation": {noRelation(), when + "01" + who + ean + "02" + days + fields + "02" + "02" + asOf + noConsent + "04" + noFile + profile +
			none + none + "00"},
		"unchanged": {unchanged(), when + "01" + who + ean + "02" + days + fields + "02" + "02" + asOf + noConsent + "07" + file + "0000000000000007" + profile +
			granted + "00000001" + "0006" + "00004fec" + "00004ff6" + "04" + "00"},
		"dry run": {dryRun(), when + "03" + who + ean + "00" + days + fields + "00" + "00" + noTime + noConsent + "01" + file + "0000000000000007" + profile +
			granted + none + "00"},
		"list":     {list(), early + "02" + bare + "0000000000000000" + "00" + noDays + none + "00" + "00" + noTime + noConsent + "01" + noFile + zeros32 + none + none + "00"},
		"changes":  {changes(), early + "07" + bare + "0000000000000000" + "00" + noDays + none + "00" + "00" + noTime + noConsent + "01" + noFile + zeros32 + none + none + "00"},
		"consents": {consents(), early + "04" + bare + ean + "00" + noDays + none + "00" + "00" + noTime + noConsent + "01" + noFile + zeros32 + none + none + "00"},
		"step": {step(), early + "05" + bare + ean + "02" + noDays + none + "00" + "00" + noTime + "6000000000000000000000000000006f" + "05" + "01" +
			file + "0000000000000008" + profile + none + none + "00"},
		"access log": {accessLog(), early + "06" + supplier + zeros32 + zeros32 + text("agent-17") + text("x") + ean + "00" + "00004fe6" + "7fffffff" + none + "00" + "00" +
			noTime + noConsent + "01" + noFile + zeros32 + none + none + "00"},
		"connection": {connection(), early + "08" + supplier + zeros32 + zeros32 + text("agent-17") + text("x") + ean + "05" + noDays + none + "00" + "00" +
			noTime + noConsent + "01" + file + "0000000000000008" + profile + none + none + "01" + hex.EncodeToString(sum[:])},
		"find": {find(), early + "09" + supplier + zeros32 + zeros32 + text("agent-17") + text("x") + ean + "05" + noDays + none + "00" + "00" +
			noTime + noConsent + "01" + file + "0000000000000008" + profile + none + none + "01" + hex.EncodeToString(sum[:])},
		"nothing found": {foundNone(), early + "09" + supplier + zeros32 + zeros32 + text("agent-17") + text("x") + "0000000000000000" + "00" + noDays + none + "00" + "00" +
			noTime + noConsent + "04" + noFile + zeros32 + none + none + "00"},
		"oversee": {oversee(), early + "0a" + supplier + zeros32 + zeros32 + text("agent-17") + text("x") + "0000000000000000" + "00" + noDays + none + "00" + "00" +
			noTime + noConsent + "01" + noFile + zeros32 + none + none + "00"},
		"supplier step": {supplierStep(), early + "0b" + supplier + zeros32 + zeros32 + text("agent-17") + text("x") + "0000000000000000" + "00" + noDays + none + "00" + "00" +
			noTime + noConsent + supplier + "01" + "0000000000000009" + file + "01" + noFile + zeros32 + none + none + "00"},
	} {
		b, err := c.r.Encode()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := hex.EncodeToString(b); got != head+c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, head+c.want)
		}
		back, err := audit.Parse(b, c.r.Receipt)
		if err != nil || !reflect.DeepEqual(back, c.r) {
			t.Errorf("%s comes back as %+v, %v", name, back, err)
		}
	}
}

func TestFieldsAreASet(t *testing.T) {
	t.Parallel()
	r := full()
	want := must(r.Encode())
	r.Fields = []meter.FieldCode{6, 1, 2, 6, 1}
	if got := must(r.Encode()); !bytes.Equal(got, want) {
		t.Error("the order in which fields are asked for changes the record")
	}
	if r.Fields[0] != 6 {
		t.Error("Encode changed the caller's slice")
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*audit.Record){
		"no interaction":             func(r *audit.Record) { r.InteractionID = [16]byte{} },
		"no time":                    func(r *audit.Record) { r.At = time.Time{} },
		"epoch":                      func(r *audit.Record) { r.At = time.Unix(0, 0) },
		"no supplier":                func(r *audit.Record) { r.Supplier = meter.GLN{} },
		"no outcome":                 func(r *audit.Record) { r.Outcome = 0 },
		"unknown outcome":            func(r *audit.Record) { r.Outcome = 8 },
		"no operation":               func(r *audit.Record) { r.Operation = 0 },
		"unknown operation":          func(r *audit.Record) { r.Operation = 8 },
		"an employee, but no reason": func(r *audit.Record) { r.Reason = "" },
		"a reason, but no employee":  func(r *audit.Record) { r.Employee = "" },
		"long reason":                func(r *audit.Record) { r.Reason = strings.Repeat("x", 129) },
		"employee of two lines":      func(r *audit.Record) { r.Employee = "a\nb" },
		"blank reason":               func(r *audit.Record) { r.Reason = "  " },
		"reason before a blank":      func(r *audit.Record) { r.Reason = "ticket " },
		"reason not UTF-8":           func(r *audit.Record) { r.Reason = "\xff" },
		"reason that turns the line": func(r *audit.Record) { r.Reason = "\u202e" },
		"unknown purpose":            func(r *audit.Record) { r.Purpose = 6 },
		"days in reverse":            func(r *audit.Record) { r.Days.To = r.Days.From - 1 },
		"readings of nothing":        func(r *audit.Record) { r.EAN = meter.EAN{} },
		"readings for nothing":       func(r *audit.Record) { r.Purpose = 0 },
		"readings of no days":        func(r *audit.Record) { r.Days = meter.DayRange{} },
		"readings refused":           func(r *audit.Record) { *r = noRelation(); r.Outcome = audit.Refused },
		"readings of a consent":      func(r *audit.Record) { r.ConsentID[0] = 1 },
		"readings, and a step":       func(r *audit.Record) { r.Action = 1 },
		"list of an employee":        func(r *audit.Record) { *r = list(); r.Employee, r.Reason = "a", "b" },
		"list of one":                func(r *audit.Record) { *r = list(); r.EAN = full().EAN },
		"list for a purpose":         func(r *audit.Record) { *r = list(); r.Purpose = meter.Billing },
		"list of days":               func(r *audit.Record) { *r = list(); r.Days = full().Days },
		"list of fields":             func(r *audit.Record) { *r = list(); r.Fields = full().Fields },
		"list by a file":             func(r *audit.Record) { *r = list(); r.FileVersion = 1 },
		"list of nobody":             func(r *audit.Record) { *r = list(); r.Outcome = audit.NoRelation },
		"changes of an employee":     func(r *audit.Record) { *r = changes(); r.Employee, r.Reason = "a", "b" },
		"changes of one":             func(r *audit.Record) { *r = changes(); r.EAN = full().EAN },
		"changes as of":              func(r *audit.Record) { *r = changes(); r.AsOf = full().AsOf },
		"changes of nobody":          func(r *audit.Record) { *r = changes(); r.Outcome = audit.NoRelation },
		"as of the future":           func(r *audit.Record) { r.AsOf = r.At.Add(time.Microsecond) },
		"as of the epoch":            func(r *audit.Record) { r.AsOf = time.Unix(0, 0) },
		"as of long ago":             func(r *audit.Record) { r.AsOf = time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC) },
		"list as of":                 func(r *audit.Record) { *r = list(); r.AsOf = time.UnixMicro(1) },
		"consents as of":             func(r *audit.Record) { *r = consents(); r.AsOf = time.UnixMicro(1) },
		"dry run as of":              func(r *audit.Record) { *r = dryRun(); r.AsOf = full().AsOf },
		"unchanged, but opened":      func(r *audit.Record) { *r = unchanged(); r.Receipt = []byte{1} },
		"unchanged, but not granted": func(r *audit.Record) { *r = unchanged(); r.Granted = nil },
		"dry run unchanged":          func(r *audit.Record) { *r = dryRun(); r.Outcome = audit.Unchanged },
		"list unchanged":             func(r *audit.Record) { *r = list(); r.Outcome = audit.Unchanged },
		"consents of nothing":        func(r *audit.Record) { *r = consents(); r.EAN = meter.EAN{} },
		"unknown consent told":       func(r *audit.Record) { *r = consents(); r.EAN, r.ConsentID = meter.EAN{}, [16]byte{1} },
		"consents of days":           func(r *audit.Record) { *r = consents(); r.Days = full().Days },
		"consents for a purpose":     func(r *audit.Record) { *r = consents(); r.Purpose = meter.Billing },
		"consents, opened":           func(r *audit.Record) { *r = consents(); r.Receipt = []byte{1} },
		"consents and a step":        func(r *audit.Record) { *r = consents(); r.Action = 1 },
		"step without an action":     func(r *audit.Record) { *r = step(); r.Action = 0 },
		"unknown step":               func(r *audit.Record) { *r = step(); r.Action = 6 },
		"step of no consent":         func(r *audit.Record) { *r = step(); r.ConsentID = [16]byte{} },
		"grant of no consent":        func(r *audit.Record) { *r = step(); r.Action, r.Outcome, r.ConsentID = 2, audit.Refused, [16]byte{} },
		"step nowhere":               func(r *audit.Record) { *r = step(); r.EAN = meter.EAN{} },
		"revocation nowhere":         func(r *audit.Record) { *r = step(); r.Action, r.Outcome, r.EAN = 4, audit.Refused, meter.EAN{} },
		"request nowhere": func(r *audit.Record) {
			*r = step()
			r.Outcome, r.EAN, r.LegalFile, r.FileVersion = audit.NoRelation, meter.EAN{}, [32]byte{}, 0
		},
		"step that made nothing":          func(r *audit.Record) { *r = step(); r.FileVersion = 0 },
		"step of days":                    func(r *audit.Record) { *r = step(); r.Days = full().Days },
		"step, opened":                    func(r *audit.Record) { *r = step(); r.Receipt = []byte{1} },
		"step of fields":                  func(r *audit.Record) { *r = step(); r.Fields = full().Fields },
		"step withheld":                   func(r *audit.Record) { *r = step(); r.Outcome = audit.Withheld },
		"access log for nobody":           func(r *audit.Record) { *r = accessLog(); r.Employee, r.Reason = "", "" },
		"access log of nothing":           func(r *audit.Record) { *r = accessLog(); r.EAN = meter.EAN{} },
		"access log of nobody":            func(r *audit.Record) { *r = accessLog(); r.Days = meter.DayRange{} },
		"access log refused, told":        func(r *audit.Record) { *r = accessLog(); r.Outcome = audit.Refused },
		"access log for a purpose":        func(r *audit.Record) { *r = accessLog(); r.Purpose = meter.Billing },
		"access log, opened":              func(r *audit.Record) { *r = accessLog(); r.Receipt = []byte{1} },
		"access log of a consent":         func(r *audit.Record) { *r = accessLog(); r.ConsentID[0] = 1 },
		"connection of nothing":           func(r *audit.Record) { *r = connection(); r.EAN = meter.EAN{} },
		"connection for nobody":           func(r *audit.Record) { *r = connection(); r.Employee, r.Reason = "", "" },
		"connection of days":              func(r *audit.Record) { *r = connection(); r.Days = full().Days },
		"connection of fields":            func(r *audit.Record) { *r = connection(); r.Fields = full().Fields },
		"connection, granted":             func(r *audit.Record) { *r = connection(); r.Granted = full().Granted },
		"connection, withheld":            func(r *audit.Record) { *r = connection(); r.Withheld = full().Withheld },
		"connection as of":                func(r *audit.Record) { *r = connection(); r.AsOf = time.UnixMicro(1) },
		"connection to bill":              func(r *audit.Record) { *r = connection(); r.Purpose = meter.Billing },
		"connection opened for nothing":   func(r *audit.Record) { *r = connection(); r.Purpose = 0 },
		"connection refused":              func(r *audit.Record) { *r = connection(); r.Outcome = audit.Refused },
		"connection and a step":           func(r *audit.Record) { *r = connection(); r.Action = 1 },
		"connection and a supplier":       func(r *audit.Record) { *r = connection(); r.Target = full().Supplier },
		"connection of none, opened":      func(r *audit.Record) { *r = connection(); r.Outcome = audit.NoRelation },
		"find of nothing, given":          func(r *audit.Record) { *r = foundNone(); r.Outcome = audit.Given },
		"find of nothing, opened":         func(r *audit.Record) { *r = find(); r.EAN, r.Outcome = meter.EAN{}, audit.Failed },
		"find of nothing, on a file":      func(r *audit.Record) { *r = foundNone(); r.Outcome, r.FileVersion = audit.Failed, 1 },
		"find for nobody":                 func(r *audit.Record) { *r = find(); r.Employee, r.Reason = "", "" },
		"find withheld":                   func(r *audit.Record) { *r = find(); r.Outcome = audit.Withheld },
		"oversight by nobody":             func(r *audit.Record) { *r = oversee(); r.Employee, r.Reason = "", "" },
		"oversight of one":                func(r *audit.Record) { *r = oversee(); r.EAN = full().EAN },
		"oversight for a purpose":         func(r *audit.Record) { *r = oversee(); r.Purpose = meter.CustomerService },
		"oversight of days":               func(r *audit.Record) { *r = oversee(); r.Days = full().Days },
		"oversight, opened":               func(r *audit.Record) { *r = oversee(); r.Receipt = []byte{1} },
		"oversight on a file":             func(r *audit.Record) { *r = oversee(); r.FileVersion = 1 },
		"oversight of a supplier":         func(r *audit.Record) { *r = oversee(); r.Target = full().Supplier },
		"oversight that suspends":         func(r *audit.Record) { *r = oversee(); r.Suspend = true },
		"oversight without relation":      func(r *audit.Record) { *r = oversee(); r.Outcome = audit.NoRelation },
		"step of no supplier":             func(r *audit.Record) { *r = supplierStep(); r.Target = meter.GLN{} },
		"step of a supplier by nobody":    func(r *audit.Record) { *r = supplierStep(); r.Employee, r.Reason = "", "" },
		"step that made no version":       func(r *audit.Record) { *r = supplierStep(); r.TargetVersion = 0 },
		"step that made no record":        func(r *audit.Record) { *r = supplierStep(); r.TargetDigest = [32]byte{} },
		"step refused that made a record": func(r *audit.Record) { *r = supplierStep(); r.Outcome = audit.Refused },
		"step of a supplier somewhere":    func(r *audit.Record) { *r = supplierStep(); r.EAN = full().EAN },
		"step of a supplier's consent":    func(r *audit.Record) { *r = supplierStep(); r.ConsentID[0] = 1 },
		"readings of a supplier's step":   func(r *audit.Record) { r.Target = full().Supplier },
		"dry run of no days":              func(r *audit.Record) { *r = dryRun(); r.Days = meter.DayRange{} },
		"dry run, but given in part":      func(r *audit.Record) { *r = dryRun(); r.Outcome = audit.Partly },
		"granted no days":                 func(r *audit.Record) { r.Granted[0].Days = meter.DaySet{} },
		"long rule":                       func(r *audit.Record) { r.Granted[0].Rule = strings.Repeat("x", 65) },
		"long receipt":                    func(r *audit.Record) { r.Receipt = make([]byte, 5000) },
		"given, but no receipt":           func(r *audit.Record) { r.Outcome = audit.Given; r.Receipt = nil },
		"given in part, but no receipt":   func(r *audit.Record) { r.Outcome = audit.Partly; r.Receipt = nil },
		"withheld, but granted":           func(r *audit.Record) { r.Outcome = audit.Withheld; r.Receipt = nil },
		"withheld, but opened":            func(r *audit.Record) { r.Outcome = audit.Withheld; r.Granted = nil },
		"no relation, but a file version": func(r *audit.Record) { *r = noRelation(); r.FileVersion = 1 },
		"no relation, but a file":         func(r *audit.Record) { *r = noRelation(); r.LegalFile[0] = 1 },
		"no relation, but granted":        func(r *audit.Record) { g := r.Granted; *r = noRelation(); r.Granted = g },
		"no relation, but withheld":       func(r *audit.Record) { w := r.Withheld; *r = noRelation(); r.Withheld = w },
		"dry run of a list":               func(r *audit.Record) { *r = dryRun(); r.EAN = meter.EAN{} },
		"dry run, but opened":             func(r *audit.Record) { *r = dryRun(); r.Receipt = []byte{1} },
		"dry run, but withheld":           func(r *audit.Record) { w := r.Withheld; *r = dryRun(); r.Withheld = w },
		"dry run of a resolution":         func(r *audit.Record) { *r = dryRun(); r.Resolution = meter.P1D },
		"dry run of a kind":               func(r *audit.Record) { *r = dryRun(); r.Kind = meter.Register },
		"dry run that failed, but opened": func(r *audit.Record) { *r = dryRun(); r.Outcome = audit.Failed; r.Receipt = []byte{1} },
		"dry run of none, but granted": func(r *audit.Record) {
			*r = dryRun()
			r.Outcome, r.LegalFile, r.FileVersion = audit.NoRelation, [32]byte{}, 0
		},
		"dry run of none, but a file":       func(r *audit.Record) { *r = dryRun(); r.Outcome, r.Granted = audit.NoRelation, nil },
		"no relation, but something opened": func(r *audit.Record) { *r = noRelation(); r.Receipt = []byte{1} },
	} {
		r := full()
		change(&r)
		if _, err := r.Encode(); !errors.Is(err, audit.ErrRecord) {
			t.Errorf("%s: %v, want ErrRecord", name, err)
		}
	}
}

// TestDaysAreCanonical: runs of days that touch, overlap or are out of order
// are another encoding of the same days.
func TestDaysAreCanonical(t *testing.T) {
	t.Parallel()
	r := full()
	const first, second = "00004fe600004fec", "00004ff600005005"
	text := hex.EncodeToString(must(r.Encode()))
	for name, runs := range map[string]string{
		"touching":     "00004fe600004ff6" + second,
		"overlapping":  "00004fe600004ff7" + second,
		"out of order": second + first,
		"empty":        first + "00004ff600004ff6",
	} {
		b := must(hex.DecodeString(strings.Replace(text, first+second, runs, 1)))
		if _, err := audit.Parse(b, r.Receipt); !errors.Is(err, audit.ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReceiptBelongsToItsRecord(t *testing.T) {
	t.Parallel()
	b := must(full().Encode())
	for name, receipt := range map[string][]byte{"none": nil, "another": []byte("receipt2")} {
		if _, err := audit.Parse(b, receipt); !errors.Is(err, audit.ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b = must(noRelation().Encode())
	if _, err := audit.Parse(b, []byte("receipt")); !errors.Is(err, audit.ErrRecord) {
		t.Errorf("a receipt beside a record without: %v", err)
	}
}

// TestEveryChangeShows flips each bit: another record, or none.
func TestEveryChangeShows(t *testing.T) {
	t.Parallel()
	r := full()
	b := must(r.Encode())
	for i := range b {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			if got, err := audit.Parse(c, r.Receipt); err == nil && reflect.DeepEqual(got, r) {
				t.Fatalf("bit %d of byte %d does not show", bit, i)
			}
		}
	}
	for n := range b {
		if _, err := audit.Parse(b[:n], r.Receipt); err == nil {
			t.Fatalf("cut to %d bytes it parses", n)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	day := rapid.Custom(func(t *rapid.T) meter.DayRange {
		from := rapid.IntRange(0, 40000).Draw(t, "from")
		return meter.DayRange{From: meter.Day(from), To: meter.Day(from + rapid.IntRange(1, 400).Draw(t, "days"))}
	})
	rapid.Check(t, func(t *rapid.T) {
		r := full()
		r.At = time.UnixMicro(rapid.Int64Range(1, 1<<52).Draw(t, "at")).UTC()
		r.Fields = rapid.SliceOfNDistinct(rapid.Map(rapid.IntRange(1, 99), func(n int) meter.FieldCode { return meter.FieldCode(n) }),
			0, 9, rapid.ID[meter.FieldCode]).Draw(t, "fields")
		r.Outcome = audit.Outcome(rapid.SampledFrom([]audit.Outcome{audit.Given, audit.Partly, audit.Failed}).Draw(t, "outcome"))
		if r.AsOf = (time.Time{}); rapid.Bool().Draw(t, "as of") {
			r.AsOf = time.UnixMicro(rapid.Int64Range(1, r.At.UnixMicro()).Draw(t, "as of when")).UTC()
		}
		r.FileVersion = rapid.Uint64().Draw(t, "version")
		r.Granted = nil
		for range rapid.IntRange(0, 4).Draw(t, "granted") {
			r.Granted = append(r.Granted, audit.Granted{
				Field: meter.FieldCode(rapid.Uint16().Draw(t, "field")),
				Days:  meter.NewDaySet(rapid.SliceOfN(day, 1, 5).Draw(t, "runs")...),
				Kind:  meter.Kind(rapid.Byte().Draw(t, "kind")), Granularity: meter.Resolution(rapid.Byte().Draw(t, "granularity")),
				Basis: meter.Basis(rapid.Byte().Draw(t, "basis")), Rule: rapid.StringN(0, 10, 64).Draw(t, "rule"),
			})
		}
		r.Withheld = nil
		for range rapid.IntRange(0, 4).Draw(t, "withheld") {
			r.Withheld = append(r.Withheld, authz.Withheld{
				Field: meter.FieldCode(rapid.Uint16().Draw(t, "field")), Days: day.Draw(t, "days"), Reason: meter.Reason(rapid.Byte().Draw(t, "reason")),
			})
		}
		r.Receipt = rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "receipt")
		if len(r.Receipt) == 0 {
			if r.Receipt = nil; len(r.Granted) > 0 {
				r.Outcome = audit.Failed // what is given has a receipt
			}
		}
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := audit.Parse(b, r.Receipt)
		if err != nil {
			t.Fatal(err)
		}
		again, err := back.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("encodes differently the second time: %v", err)
		}
	})
}

// FuzzParse: whatever parses encodes to the same bytes.
func FuzzParse(f *testing.F) {
	for _, r := range []audit.Record{full(), noRelation(), dryRun(), list(), changes(), unchanged(), consents(), step(), accessLog(), connection(), find(), foundNone(), oversee(), supplierStep()} {
		f.Add(must(r.Encode()), r.Receipt)
	}
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, b, receipt []byte) {
		r, err := audit.Parse(b, receipt)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x becomes %x, %v", b, again, err)
		}
	})
}

// What a dry run told fits the format, however often days change.
func TestAccessItemsFit(t *testing.T) {
	t.Parallel()
	if got := audit.AccessItems(authz.Access{}); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for i, want := range []string{"Operation(0)", "readings", "list", "dry_run", "consents", "consent_step", "access_log", "changes", "connection", "find", "oversee", "supplier_step", "Operation(12)"} {
		if got := audit.Operation(i).String(); got != want {
			t.Errorf("operation %d: %s", i, got)
		}
	}
	for i, want := range []string{"Outcome(0)", "given", "partly", "withheld", "no_relation", "failed", "refused", "unchanged", "Outcome(8)"} {
		if got := audit.Outcome(i).String(); got != want {
			t.Errorf("outcome %d: %s", i, got)
		}
	}
}

// A step that came to nothing need not name a consent that is none; one of a
// consent that nobody knows names no metering point.
func TestStepsThatCameToNothing(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*audit.Record){
		"request refused": func(r *audit.Record) { r.Outcome, r.ConsentID = audit.Refused, [16]byte{} },
		"request where there is no relation": func(r *audit.Record) {
			r.Outcome, r.ConsentID, r.LegalFile, r.FileVersion = audit.NoRelation, [16]byte{}, [32]byte{}, 0
		},
		"unknown consent": func(r *audit.Record) {
			r.Action, r.Outcome, r.EAN, r.Purpose, r.LegalFile, r.FileVersion = 4, audit.NoRelation, meter.EAN{}, 0, [32]byte{}, 0
		},
		"unknown consent asked for": func(r *audit.Record) {
			*r = consents()
			r.Outcome, r.EAN, r.ConsentID = audit.NoRelation, meter.EAN{}, [16]byte{1}
		},
		"access log of nobody": func(r *audit.Record) { *r = accessLog(); r.Outcome, r.Days = audit.Refused, meter.DayRange{} },
		"connection of nobody": func(r *audit.Record) {
			*r = connection()
			r.Outcome, r.LegalFile, r.FileVersion, r.Purpose, r.Receipt = audit.NoRelation, [32]byte{}, 0, 0, nil
		},
		"find of another address": func(r *audit.Record) { *r = foundNone(); r.Outcome = audit.Refused },
		"oversight that failed":   func(r *audit.Record) { *r = oversee(); r.Outcome = audit.Failed },
		"supplier not resumed": func(r *audit.Record) {
			*r = supplierStep()
			r.Outcome, r.Suspend, r.TargetVersion, r.TargetDigest = audit.Refused, false, 0, [32]byte{}
		},
		"supplier unknown": func(r *audit.Record) {
			*r = supplierStep()
			r.Outcome, r.TargetVersion, r.TargetDigest = audit.NoRelation, 0, [32]byte{}
		},
	} {
		r := step()
		change(&r)
		if b, err := r.Encode(); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if back, err := audit.Parse(b, nil); err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("%s comes back as %+v, %v", name, back, err)
		}
	}
}
