package main

import (
	"context"
	"errors"
)

type demoCmd struct{}

func (demoCmd) Run(context.Context) error {
	return errors.New("the demo is not built in yet")
}
