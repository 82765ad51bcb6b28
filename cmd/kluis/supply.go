package main

import (
	"context"
	"errors"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/meter"
)

type supplyCmd struct {
	Set         supplySetCmd         `cmd:"" help:"Register a supplier at a metering point for some days; registers the metering point when it is new."`
	Show        supplyShowCmd        `cmd:"" help:"Show a metering point's legal file."`
	Import      supplyImportCmd      `cmd:"" help:"Take over an extract of the central connection register (CSV)."`
	Correct     supplyCorrectCmd     `cmd:"" help:"Correct who supplied, backdated."`
	CorrectMove supplyCorrectMoveCmd `cmd:"" help:"Correct the day of a move, backdated."`
}

type supplySetCmd struct {
	target
	EAN          eanFlag       `help:"Metering point (EAN-18)." required:"" name:"ean" placeholder:"EAN"`
	Supplier     glnFlag       `help:"Supplier (GLN)." required:"" placeholder:"GLN"`
	From         dayFlag       `help:"First day of supply." required:"" placeholder:"DAY"`
	To           dayFlag       `help:"First day after supply; open when left out." placeholder:"DAY"`
	Commodity    commodityFlag `help:"electricity or gas; for a new metering point." placeholder:"KIND"`
	OccupiedFrom dayFlag       `help:"A new customer moved in on this day." placeholder:"DAY"`
	OccupiedTo   dayFlag       `help:"The customer of --occupied-from moved out on this day." placeholder:"DAY"`
}

// Help says more than fits a line.
func (supplySetCmd) Help() string {
	return `An open period of another supplier ends where this one starts. To end a period, give its supplier and first day again, with --to.

A metering point without any occupancy gets one from the first day of supply on; consents and data keys belong to an occupancy. Say --occupied-from when somebody moves in.

Example, a metering point seen for the first time:
  kluis supply set --state .demo --ean 871687200000000997 --commodity electricity --supplier 8712000000011 --from 2024-01-01`
}

func (c *supplySetCmd) Run(ctx context.Context, s streams) error {
	if c.To.set && c.To.Day <= c.From.Day {
		return usage("--to must be later than --from: it is the first day after")
	}
	if c.OccupiedTo.set && (!c.OccupiedFrom.set || c.OccupiedTo.Day <= c.OccupiedFrom.Day) {
		return usage("--occupied-to goes with an earlier --occupied-from")
	}
	return withRegistrar(ctx, c.target, func(r *backend.Registrar) error {
		// A supplier nobody knows is most likely a slip of the pen.
		if _, err := r.Supplier(ctx, c.Supplier.GLN); err != nil {
			return err
		}
		f, err := r.ChangeLegalFile(ctx, c.EAN.EAN, c.steps)
		if err != nil {
			return err
		}
		return printLegalFile(s.out, f, c.JSON)
	})
}

func (c *supplySetCmd) steps(current *authz.LegalFile) ([]authz.Step, error) {
	var steps []authz.Step
	occupied := false
	switch {
	case current == nil && c.Commodity.Commodity == 0:
		return nil, usage("the metering point is new: say --commodity electricity or gas")
	case current == nil:
		steps = append(steps, authz.Register{EAN: c.EAN.EAN, Commodity: c.Commodity.Commodity})
	case c.Commodity.Commodity != 0 && c.Commodity.Commodity != current.Commodity():
		return nil, usage("the metering point is registered for %s: leave --commodity out, or check the EAN", current.Commodity())
	default:
		occupied = len(current.Occupancies()) > 0
	}
	switch {
	case c.OccupiedFrom.set:
		steps = append(steps, authz.SetOccupancy{Days: meter.DayRange{From: c.OccupiedFrom.Day, To: c.OccupiedTo.until()}})
	case !occupied:
		steps = append(steps, authz.SetOccupancy{Days: meter.DayRange{From: c.From.Day, To: meter.MaxDay}})
	}
	return append(steps, authz.SetSupply{Supplier: c.Supplier.GLN, Days: meter.DayRange{From: c.From.Day, To: c.To.until()}}), nil
}

type supplyShowCmd struct {
	target
	EAN eanFlag `help:"Metering point (EAN-18)." required:"" name:"ean" placeholder:"EAN"`
}

func (c *supplyShowCmd) Run(ctx context.Context, s streams) error {
	return withRegistrar(ctx, c.target, func(r *backend.Registrar) error {
		f, err := r.ChangeLegalFile(ctx, c.EAN.EAN, registered(nil))
		if err != nil {
			return err
		}
		return printLegalFile(s.out, f, c.JSON)
	})
}

// registered plans the steps of a metering point that must be known.
func registered(steps []authz.Step) func(*authz.LegalFile) ([]authz.Step, error) {
	return func(current *authz.LegalFile) ([]authz.Step, error) {
		if current == nil {
			return nil, errors.New("the metering point is not registered: register it first with kluis supply set --commodity")
		}
		return steps, nil
	}
}

// withRegistrar connects as the registrar for one command.
func withRegistrar(ctx context.Context, t target, use func(*backend.Registrar) error) error {
	conf, err := t.load()
	if err != nil {
		return err
	}
	r, err := backend.OpenRegistrar(ctx, conf)
	if err != nil {
		return err
	}
	return errors.Join(use(r), r.Close())
}
