package main

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/meter"
)

type consentCmd struct {
	Grant  consentGrantCmd  `cmd:"" help:"Record a customer's consent."`
	Revoke consentRevokeCmd `cmd:"" help:"Revoke a consent; counts from the next request on."`
}

type consentGrantCmd struct {
	target
	EAN         eanFlag        `help:"Metering point (EAN-18)." required:"" name:"ean" placeholder:"EAN"`
	Supplier    glnFlag        `help:"Supplier who may read (GLN)." required:"" placeholder:"GLN"`
	Purpose     purposeFlag    `help:"What for." default:"ENERGY_MANAGEMENT" placeholder:"PURPOSE"`
	Class       []classFlag    `help:"registers, intervals; both: repeat or separate by comma." default:"intervals" placeholder:"CLASS"`
	Granularity resolutionFlag `help:"The finest that may be read: PT15M, PT1H, P1D or P1M." required:"" placeholder:"PERIOD"`
	From        dayFlag        `help:"First day that may be read." required:"" placeholder:"DAY"`
	To          dayFlag        `help:"First day that may not be read any more; open when left out." placeholder:"DAY"`
	ValidUntil  string         `help:"When the consent itself ends: a day (its start) or a time with offset." required:"" placeholder:"WHEN"`
	Evidence    string         `help:"Reference to the proof, without personal data." required:"" placeholder:"REF"`
}

// Help says more than fits a line.
func (consentGrantCmd) Help() string {
	return `The customer is whoever occupies the metering point today. The id is printed; kluis consent revoke takes it.

Example:
  kluis consent grant --state .demo --ean 871687200000000010 --supplier 8712000000011 --granularity PT15M --from 2024-01-01 --valid-until 2027-01-01 --evidence contract-4711`
}

func (c *consentGrantCmd) Run(ctx context.Context, s streams) error {
	if c.To.set && c.To.Day <= c.From.Day {
		return usage("--to must be later than --from: it is the first day after")
	}
	return withRegistrar(ctx, c.target, func(r *backend.Registrar) error {
		until, err := instant(c.ValidUntil, r.Profile.Location())
		if err != nil {
			return usage("--valid-until: %w", err)
		}
		if _, err := r.Supplier(ctx, c.Supplier.GLN); err != nil {
			return err
		}
		id := uuid.New()
		step := authz.GrantConsent{
			ID: id, Supplier: c.Supplier.GLN, Purpose: c.Purpose.Purpose, Granularity: c.Granularity.Resolution,
			Days: meter.DayRange{From: c.From.Day, To: c.To.until()}, ValidUntil: until, Evidence: c.Evidence,
		}
		for _, class := range c.Class {
			step.Classes = append(step.Classes, class.Class)
		}
		f, err := r.ChangeLegalFile(ctx, c.EAN.EAN, registered([]authz.Step{step}))
		if err != nil {
			return err
		}
		return printConsent(s, f, id, c.JSON)
	})
}

type consentRevokeCmd struct {
	target
	EAN eanFlag  `help:"Metering point (EAN-18)." required:"" name:"ean" placeholder:"EAN"`
	ID  uuidFlag `help:"The consent's id." required:"" name:"id" placeholder:"UUID"`
}

func (c *consentRevokeCmd) Run(ctx context.Context, s streams) error {
	return withRegistrar(ctx, c.target, func(r *backend.Registrar) error {
		f, err := r.ChangeLegalFile(ctx, c.EAN.EAN, registered([]authz.Step{authz.RevokeConsent{ID: c.ID.UUID}}))
		if err != nil {
			return err
		}
		return printConsent(s, f, c.ID.UUID, c.JSON)
	})
}

func printConsent(s streams, f *authz.LegalFile, id uuid.UUID, asJSON bool) error {
	for _, c := range f.Consents() {
		if c.ID != id {
			continue
		}
		v := consentViewOf(c)
		if asJSON {
			return printJSON(s.out, v)
		}
		state := "recorded"
		if v.RevokedAt != nil {
			state = "revoked"
		}
		_, err := fmt.Fprintf(s.out, "Consent %s %s (legal file version %d).\n", v.ID, state, f.Version())
		return err
	}
	return fmt.Errorf("the sealed legal file lacks consent %s", id)
}
