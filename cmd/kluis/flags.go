package main

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"kluis/internal/config"
	"kluis/meter"
)

// target says which installation a command acts on.
type target struct {
	State  string `help:"State folder of the demo; its kluis.yaml is the configuration. Default: $$KLUIS_STATE." type:"path" placeholder:"DIR" xor:"target"`
	Config string `help:"Operator's configuration file. Default: $$KLUIS_CONFIG." type:"path" placeholder:"FILE" xor:"target"`
	JSON   bool   `help:"Print JSON."`
}

func (t target) load() (config.Operator, error) {
	path, state := t.Config, t.State
	if path == "" && state == "" {
		path, state = os.Getenv("KLUIS_CONFIG"), os.Getenv("KLUIS_STATE")
	}
	switch {
	case path != "":
	case state != "":
		path = filepath.Join(state, "kluis.yaml")
	default:
		return config.Operator{}, usage("say which installation: --state DIR (the demo's) or --config FILE")
	}
	return config.Load[config.Operator](path)
}

// The flags below are parsed, not validated: whatever a command gets is well
// formed. Their errors never repeat the text.

type eanFlag struct{ meter.EAN }

func (f *eanFlag) UnmarshalText(b []byte) (err error) {
	f.EAN, err = meter.ParseEAN(string(b))
	return err
}

type glnFlag struct{ meter.GLN }

func (f *glnFlag) UnmarshalText(b []byte) (err error) {
	f.GLN, err = meter.ParseGLN(string(b))
	return err
}

type dayFlag struct {
	meter.Day
	set bool
}

func (f *dayFlag) UnmarshalText(b []byte) (err error) {
	f.Day, err = meter.ParseDay(string(b))
	f.set = err == nil
	return err
}

// until is the day, or no end when the flag was not given.
func (f dayFlag) until() meter.Day {
	if !f.set {
		return meter.MaxDay
	}
	return f.Day
}

type commodityFlag struct{ meter.Commodity }

func (f *commodityFlag) UnmarshalText(b []byte) (err error) {
	if f.Commodity, err = meter.ParseCommodity(string(b)); err != nil {
		err = errors.New("must be electricity or gas")
	}
	return err
}

type purposeFlag struct{ meter.Purpose }

func (f *purposeFlag) UnmarshalText(b []byte) (err error) {
	if f.Purpose, err = meter.ParsePurpose(strings.ToUpper(string(b))); err != nil {
		err = errors.New("must be BILLING, ENERGY_MANAGEMENT, SWITCH, MOVE or CUSTOMER_SERVICE")
	}
	return err
}

type classFlag struct{ meter.Class }

func (f *classFlag) UnmarshalText(b []byte) (err error) {
	if f.Class, err = meter.ParseClass(string(b)); err != nil {
		err = errors.New("must be registers or intervals")
	}
	return err
}

type resolutionFlag struct{ meter.Resolution }

func (f *resolutionFlag) UnmarshalText(b []byte) (err error) {
	if f.Resolution, err = meter.ParseResolution(strings.ToUpper(string(b))); err != nil {
		err = errors.New("must be PT15M, PT1H, P1D or P1M")
	}
	return err
}

type uuidFlag struct{ uuid.UUID }

func (f *uuidFlag) UnmarshalText(b []byte) (err error) {
	if f.UUID, err = uuid.Parse(string(b)); err != nil {
		err = errors.New("must be a UUID, as it was printed")
	}
	return err
}

type thumbprintFlag struct {
	sum [32]byte
	set bool
}

func (f *thumbprintFlag) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(strings.ReplaceAll(string(b), ":", ""))
	if err != nil || len(raw) != len(f.sum) {
		return errors.New("must be a SHA-256 thumbprint: 64 hexadecimal digits")
	}
	f.sum, f.set = [32]byte(raw), true
	return nil
}

// instant reads a time with offset, or the start of a local day.
func instant(s string, loc *time.Location) (time.Time, error) {
	if d, err := meter.ParseDay(s); err == nil {
		return d.Start(loc), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, errors.New("must be a day (2027-01-01: its start) or a time with offset (2027-01-01T12:00:00+01:00)")
	}
	return t, nil
}
