package web

var readingsTexts = texts{}
