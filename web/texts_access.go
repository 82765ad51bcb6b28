package web

var accessTexts = texts{}
